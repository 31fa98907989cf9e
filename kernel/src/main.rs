//! Kernel entry.
fn main(){}
