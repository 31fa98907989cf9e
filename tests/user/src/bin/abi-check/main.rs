//! Checks of the system call interface, seen from ring 3.
fn main() {}
