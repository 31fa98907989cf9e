//! `mm/testkit/tests/sequences.rs` with huge pages of 16 base pages: what is rare in a large one happens all the time.

extern crate mm_testkit_small as mm_testkit;

#[path = "../../tests/sequences.rs"]
mod sequences;
