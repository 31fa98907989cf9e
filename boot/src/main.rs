//! Starts Cleave in QEMU.
fn main() {}
