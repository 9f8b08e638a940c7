//! The keywheel program.

fn main() {}
