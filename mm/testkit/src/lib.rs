//! Test kit of `mm`: everything that judges it.
//!
//! | module | is | runs on |
//! |---|---|---|
//! | [`oracle`] | the counter rules of one huge page beside the plain truth | anywhere, no heap |
//! | [`scenario`] | rows of the specification, each a list of steps, and what runs them | anywhere, no heap |
//! | `machine` | a simulated machine that notices what hardware forgives | host |
//! | `sim` | that machine booted, and processes on it | host |
//! | `fixture` | what tests of huge pages begin with, and the numbers they compare | host |
//! | `sequence` | random sequences of operations, beside a model of what they must do | host |
//!
//! Tests that need the simulated machine live in `mm/testkit/tests`: inside `mm`'s own unit tests it would be linked
//! against a second copy of `mm`.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod oracle;
pub mod scenario;

#[cfg(feature = "std")]
pub mod fixture;
#[cfg(feature = "std")]
pub mod machine;
#[cfg(feature = "std")]
pub mod sequence;
#[cfg(feature = "std")]
pub mod sim;
