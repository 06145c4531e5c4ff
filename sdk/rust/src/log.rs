//! Lines for the operator. The host caps how much of them one batch may write.
//!
//! ```
//! use fluxmill_function::{info, warn};
//!
//! # let (order, limit) = (12, 3);
//! info!("settled");
//! warn!(order, limit = limit * 100; "over the limit by {}", 5);
//! ```

pub use crate::bindings::fluxmill::function::log::Level;

/// Writes a line with fields. The macros are shorter.
pub fn write(level: Level, message: &str, fields: &[(&str, String)]) {
    let fields: Vec<(String, String)> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    #[cfg(target_arch = "wasm32")]
    crate::bindings::fluxmill::function::log::write(level, message, &fields);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::record(level, message, fields);
}

/// Writes a line at a level: `log_at!(level, field, other = value; "message {}", argument)`. The fields, with their
/// semicolon, may be left out; their values are printed by `Display`.
#[macro_export]
macro_rules! log_at {
    ($level:expr, $($name:ident $(= $value:expr)?),+ ; $($message:tt)+) => {
        $crate::log::write(
            $level,
            &::std::format!($($message)+),
            &[$((::core::stringify!($name), $crate::__field!($name $(= $value)?))),+],
        )
    };
    ($level:expr, $($message:tt)+) => {
        $crate::log::write($level, &::std::format!($($message)+), &[])
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __field {
    ($name:ident) => {
        ::std::string::ToString::to_string(&$name)
    };
    ($name:ident = $value:expr) => {
        ::std::string::ToString::to_string(&$value)
    };
}

/// Writes a line that only somebody who follows single events wants; see [`log`](mod@crate::log).
#[macro_export]
macro_rules! trace { ($($line:tt)+) => { $crate::log_at!($crate::log::Level::Trace, $($line)+) }; }

/// Writes a line that helps to find a fault; see [`log`](mod@crate::log).
#[macro_export]
macro_rules! debug { ($($line:tt)+) => { $crate::log_at!($crate::log::Level::Debug, $($line)+) }; }

/// Writes a line about the usual course of things; see [`log`](mod@crate::log).
#[macro_export]
macro_rules! info { ($($line:tt)+) => { $crate::log_at!($crate::log::Level::Info, $($line)+) }; }

/// Writes a line about something odd that did not stop the function; see [`log`](mod@crate::log).
#[macro_export]
macro_rules! warn { ($($line:tt)+) => { $crate::log_at!($crate::log::Level::Warn, $($line)+) }; }

/// Writes a line that a human must look at; see [`log`](mod@crate::log).
#[macro_export]
macro_rules! error { ($($line:tt)+) => { $crate::log_at!($crate::log::Level::Error, $($line)+) }; }
