#![no_main]

#[path = "../checks/messages.rs"]
mod messages;

#[path = "../../it/support/reading.rs"]
mod reading;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    messages::check(bytes);
});
