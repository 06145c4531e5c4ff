//! Functions that lie, loop, flood, hoard or crash, and functions that should not have been loaded: each must end in
//! its own kind of fault, and disturb nobody else.

#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

mod crossing;
mod guest;
mod hostile;
mod load;
mod sdk;
mod support;
