#![no_main]

#[path = "../checks/store.rs"]
mod store;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    store::check(bytes);
});
