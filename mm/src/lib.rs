//! The memory manager.
#![no_std]
