//! The machine tests of Cleave: see `qemu/main.rs`.
