#![no_main]

#[path = "../checks/times.rs"]
mod times;

#[path = "../../it/support/reading.rs"]
mod reading;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    times::check(bytes);
});
