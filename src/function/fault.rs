//! What a failed call was: the kind that decides what happens to the batch, and one line for the operator.

use std::fmt::Write as _;

use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::journal::{capped, printable};
use super::limits::Limiter;
use super::{CallError, Fault};
use crate::spec::FunctionLimits;

/// Bytes of a reason. It goes into dead-letter headers.
const REASON_MAX: usize = 512;
/// Frames of the function's stack that a reason names.
const FRAMES_MAX: usize = 4;
/// Bytes of one frame's name.
const FRAME_MAX: usize = 80;
/// How wasmtime says that the limit on handed-over bytes was passed; the type is private.
const FUEL_WORDS: &str = "fuel allocated for hostcalls has been exhausted";

/// Marks an error that came while the sandbox was set up, before the function was called.
#[derive(Debug)]
pub(super) struct Starting;

impl std::fmt::Display for Starting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the function could not be started")
    }
}

/// The call passed its deadline.
pub(super) fn timeout(limits: &FunctionLimits) -> CallError {
    new(Fault::Timeout, format!("the function ran longer than limits.timeout ({:?})", limits.timeout))
}

/// What an error of a call means.
pub(super) fn of_error(
    error: &wasmtime::Error,
    limiter: &Limiter,
    limits: &FunctionLimits,
    last_words: &str,
) -> CallError {
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::Interrupt) {
        return timeout(limits);
    }
    // Errors inside of the function carry its stack; without one, lifting the result failed.
    let starting = error.downcast_ref::<Starting>().is_some();
    let inside = starting || trap.is_some() || error.downcast_ref::<WasmBacktrace>().is_some();
    let root = error.root_cause().to_string();
    if !inside && root.contains(FUEL_WORDS) {
        let reason = format!("the function returned more than limits.output ({} bytes)", limits.output);
        return new(Fault::Output, reason);
    }
    // A function that gets no memory gives up in its own way; what it was refused is the cause.
    if let Some(asked) = limiter.refused() {
        let reason =
            format!("the function asked for {asked} bytes of memory, limits.memory allows {}", limiter.allowed());
        return new(Fault::Memory, reason);
    }
    if !inside {
        return new(Fault::Output, format!("the function returned what is no outcome: {root}"));
    }
    new(Fault::Trap, trap_reason(error, trap, &root, last_words))
}

fn new(fault: Fault, reason: String) -> CallError {
    let reason = capped(&printable(&reason), REASON_MAX).to_owned();
    CallError::Fault { fault, reason }
}

fn trap_reason(error: &wasmtime::Error, trap: Option<Trap>, root: &str, last_words: &str) -> String {
    let mut reason = match (error.downcast_ref::<I32Exit>(), trap) {
        (Some(I32Exit(code)), _) => format!("the function called exit({code})"),
        (None, Some(trap)) => trap.to_string(),
        (None, None) if root.contains(FUEL_WORDS) => "a host call was given more bytes than limits.output".to_owned(),
        (None, None) if error.downcast_ref::<Starting>().is_some() => format!("{Starting}: {root}"),
        (None, None) => root.to_owned(),
    };
    if let Some(rest) = reason.strip_prefix("wasm trap: ") {
        reason = rest.to_owned();
    }
    if !last_words.is_empty() {
        let _ = write!(reason, "; its last words: {last_words}");
    }
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let names = frames.iter().filter_map(|frame| frame.func_name()).take(FRAMES_MAX);
    for (at, name) in names.enumerate() {
        let _ = write!(reason, "{}{}", if at == 0 { "; in " } else { " < " }, capped(name, FRAME_MAX));
    }
    reason
}
