//! What a function says during one call: capped, made printable, and handed to the log.
//!
//! Lines go to `tracing` inside the caller's span, which says which pipeline speaks.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::Level;

/// The target of everything that functions say.
pub(super) const TARGET: &str = "fluxmill::function";
/// Bytes of log that one call may write; the rest is dropped.
pub(super) const LOG_BYTES_MAX: usize = 64 * 1024;
/// What a line costs beside its bytes, so that empty lines are not free.
const LINE_COST: usize = 32;
/// A longer line of standard output is split.
const LINE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the function's last words that go into the reason of a trap.
const LAST_WORDS_MAX: usize = 240;

/// A standard stream of a function.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The log of one call.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    used: usize,
    lines: [Vec<u8>; 2],
    last_words: String,
}

impl Journal {
    /// Whether another line would be written: there is room, and somebody reads this level.
    pub(super) fn wants(&self, level: Level) -> bool {
        // Errors are kept for the reason of a trap, even when nobody reads them.
        (level == Level::ERROR || enabled(level)) && self.state().used <= LOG_BYTES_MAX
    }

    /// Writes one line.
    pub(super) fn write(&self, level: Level, message: &str, fields: &str) {
        let mut state = self.state();
        if level == Level::ERROR {
            state.last_words.clear();
            state.remember(message);
        }
        state.write(level, message, fields);
    }

    /// Takes bytes of a standard stream; whole lines are written.
    pub(super) fn print(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.state();
        if state.used > LOG_BYTES_MAX {
            return;
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            state.lines[stream as usize].extend_from_slice(part);
            if part.ends_with(b"\n") || state.lines[stream as usize].len() >= LINE_BYTES_MAX {
                state.flush(stream);
            }
        }
    }

    /// Ends the call: lines without an end are written. Returns the last that the function said of an error, capped.
    pub(super) fn finish(&self) -> String {
        let mut state = self.state();
        state.flush(Stream::Stdout);
        state.flush(Stream::Stderr);
        std::mem::take(&mut state.last_words)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn flush(&mut self, stream: Stream) {
        let line = std::mem::take(&mut self.lines[stream as usize]);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        match stream {
            Stream::Stdout => self.write(Level::INFO, text, ""),
            Stream::Stderr => {
                // A panic is several lines of standard error; advice on how to debug is of no use here.
                if !text.starts_with("note: ") {
                    self.remember(text);
                }
                self.write(Level::WARN, text, "");
            }
        }
    }

    fn remember(&mut self, text: &str) {
        if !self.last_words.is_empty() {
            self.last_words.push(' ');
        }
        self.last_words.push_str(text);
        let surplus = self.last_words.len().saturating_sub(LAST_WORDS_MAX);
        self.last_words.drain(..self.last_words.ceil_char_boundary(surplus));
    }

    fn write(&mut self, level: Level, message: &str, fields: &str) {
        if self.used > LOG_BYTES_MAX {
            return;
        }
        let cost = LINE_COST + message.len() + fields.len();
        if self.used + cost > LOG_BYTES_MAX {
            self.used = LOG_BYTES_MAX + 1;
            tracing::warn!(
                target: TARGET,
                "the function wrote more than {LOG_BYTES_MAX} bytes of log in one call; the rest is dropped"
            );
            return;
        }
        self.used += cost;
        emit(level, &printable(message), &printable(fields));
    }
}

/// Text in which control characters are escaped: a function cannot forge lines or steer a terminal.
pub(super) fn printable(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// Cuts text to at most `max` bytes, at the end of a character.
pub(super) fn capped(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

macro_rules! at_level {
    ($level:expr, $call:ident) => {
        match $level {
            Level::TRACE => $call!(TRACE),
            Level::DEBUG => $call!(DEBUG),
            Level::INFO => $call!(INFO),
            Level::WARN => $call!(WARN),
            Level::ERROR => $call!(ERROR),
        }
    };
}

fn enabled(level: Level) -> bool {
    macro_rules! ask {
        ($level:ident) => {
            tracing::enabled!(target: TARGET, Level::$level)
        };
    }
    at_level!(level, ask)
}

fn emit(level: Level, message: &str, fields: &str) {
    macro_rules! say {
        ($level:ident) => {
            if fields.is_empty() {
                tracing::event!(target: TARGET, Level::$level, "{message}")
            } else {
                tracing::event!(target: TARGET, Level::$level, fields, "{message}")
            }
        };
    }
    at_level!(level, say)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_panic_are_kept_without_advice() {
        let journal = Journal::default();
        journal.print(Stream::Stderr, b"\nthread '<unnamed>' panicked at src/lib.rs:7:5:\nno amo");
        journal.print(Stream::Stderr, b"unt\nnote: run with `RUST_BACKTRACE=1`");
        assert_eq!(journal.finish(), "thread '<unnamed>' panicked at src/lib.rs:7:5: no amount");
    }

    #[test]
    fn the_last_words_are_capped_at_their_end() {
        let journal = Journal::default();
        journal.write(Level::ERROR, &"ü".repeat(1_000), "");
        let words = journal.finish();
        assert!(words.len() <= LAST_WORDS_MAX && words.ends_with('ü'), "{words}");
    }

    #[test]
    fn a_full_journal_wants_no_more() {
        let journal = Journal::default();
        for _ in 0..LOG_BYTES_MAX / LINE_COST + 1 {
            journal.write(Level::ERROR, "", "");
        }
        assert!(!journal.wants(Level::ERROR));
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{9b}"), "a\\u{1b}[31m\\nb\\u{9b}");
        assert_eq!(capped("äöü", 3), "ä");
    }
}
