//! What an operator sees: logs and counts.

pub mod logs;
pub mod metrics;
