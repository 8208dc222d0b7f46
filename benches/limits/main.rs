//! How close the daemon comes to the broker's own limits: each row beside its yardstick, in turn, in the same run.
//!
//! ```text
//! make bench                    every row, five rounds each; draws the table of README.md anew
//! make bench ROW=drain ROUNDS=3 one row; no table
//! make bench SCALE=0.1          a tenth of the messages, to try it; no table
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `rows/` | what is measured |
//! | `bare.rs`, `server.rs` | the yardstick: a client of as few instructions as possible, and its nats-server |
//! | `daemon.rs`, `process.rs` | the release program, and what the kernel knows of it |
//! | `traffic.rs`, `../draws.rs` | what is published |
//! | `figures.rs`, `table.rs` | what came out |

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench that cannot go on ends"
)]

mod bare;
mod daemon;
#[path = "../draws.rs"]
mod draws;
mod figures;
mod process;
mod rows;
mod server;
mod table;
mod traffic;

use std::fs;

use figures::Figures;
use rows::{Bench, ROWS};

fn main() {
    let only = setting("ROW");
    let rounds = setting("ROUNDS").map_or(5, |it| it.parse().expect("ROUNDS is a number"));
    let scale = setting("SCALE").map_or(1.0, |it| it.parse().expect("SCALE is a number"));
    let chosen = ROWS
        .iter()
        .filter(|row| only.as_deref().is_none_or(|only| row.name == only));
    let mut measured = Vec::new();
    for row in chosen {
        let folder = std::env::temp_dir().join(format!("tocsin-limits-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the folder for the bench can be created");
        println!("{}: {}, beside: {}", row.name, row.what, row.beside);
        let bench = Bench {
            folder,
            num_rounds: rounds,
            scale,
        };
        let mut figures = Figures::default();
        (row.measure)(&bench, &mut figures);
        fs::remove_dir_all(&bench.folder).expect("the bench's folder can be removed");
        table::print(&figures);
        measured.push((row, figures));
    }
    assert!(
        !measured.is_empty(),
        "no row is called {}",
        only.unwrap_or_default()
    );
    let is_whole = only.is_none() && scale >= 1.0;
    if is_whole {
        table::draw(&measured);
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
