//! What ends the process, and how it is reported.

use actix::dev::ToEnvelope;
use actix::prelude::*;
use tokio::sync::mpsc;

use crate::store::StoreError;

/// What ends the process.
#[derive(Debug)]
pub enum Fault {
    /// The store cannot be read or written.
    Store(StoreError),
    /// The program is wrong.
    Defect(String),
}

/// Where faults are reported.
#[derive(Clone)]
pub struct Faults(pub(super) mpsc::Sender<Fault>);

impl Faults {
    /// What an actor holds that must not end.
    pub(super) const fn lifeline(self, actor: &'static str) -> Lifeline {
        Lifeline {
            faults: self,
            actor,
        }
    }

    /// Ends the process; the first fault is the one that is told.
    pub fn report(&self, fault: Fault) {
        // A full channel holds an earlier fault, and a closed one has been heard.
        drop(self.0.try_send(fault));
    }

    /// Sends within the permits of the message: a full mailbox means that a permit was forgotten.
    pub(super) fn send<A, M>(&self, to: &Addr<A>, message: M)
    where
        A: Actor + Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message<Result = ()> + Send + 'static,
    {
        match to.try_send(message) {
            // A closed mailbox belongs to an actor that is being restarted or stopped: what it held is read again.
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(SendError::Full(_)) => {
                let mailbox = std::any::type_name::<A>();
                self.report(Fault::Defect(format!("the mailbox of {mailbox} is full")));
            }
        }
    }
}

/// Held by an actor that must not end: its panic ends the process.
pub(super) struct Lifeline {
    faults: Faults,
    actor: &'static str,
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let actor = self.actor;
            self.faults
                .report(Fault::Defect(format!("the {actor} panicked")));
        }
    }
}
