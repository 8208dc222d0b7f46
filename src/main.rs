//! The `tocsin` program.

fn main() {}
