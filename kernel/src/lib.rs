//! The kernel library.
#![no_std]
