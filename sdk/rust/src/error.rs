//! Why an event, or a batch, could not be processed. Two kinds, because the host does two things about it.

use std::fmt::{self, Display};

use crate::FailureKind;

/// The longest reason that is kept, in bytes. A parser's message may quote the whole event.
const MAX_REASON: usize = 1024;

/// Why an event could not be processed, and whether running it again may help.
///
/// Any [`std::error::Error`] becomes a *reject* by `?`, its sources included in the reason. Say
/// [`Error::retry`] or [`OrFail::or_retry`] where another attempt may pass.
///
/// ```
/// use fluxmill_function::{Error, FailureKind};
///
/// fn amount(text: &str) -> Result<u64, Error> {
///     Ok(text.parse()?)
/// }
/// let error = amount("12x").unwrap_err();
/// assert_eq!(error.kind(), FailureKind::Reject);
/// assert_eq!(error.reason(), "invalid digit found in string");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: FailureKind,
    reason: String,
}

impl Error {
    /// The event will never pass: it goes where the pipeline's `on_error.then` says, with this reason.
    pub fn reject(reason: impl Display) -> Self {
        Self { kind: FailureKind::Reject, reason: capped(reason.to_string()) }
    }

    /// The event may pass later: it is run again, as often as the pipeline's `on_error.retry` says.
    pub fn retry(reason: impl Display) -> Self {
        Self { kind: FailureKind::Retry, reason: capped(reason.to_string()) }
    }

    /// Whether running the event again may help.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The reason, at most 1,024 bytes.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn into_reason(self) -> String {
        self.reason
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

// `Error` is no `std::error::Error` itself: that is what lets this cover all others.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Error::reject(reason)
    }
}

fn capped(mut reason: String) -> String {
    if reason.len() > MAX_REASON {
        let mut end = MAX_REASON;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
    }
    reason
}

/// Turns an absent value, or a failure, into an [`Error`] in one word.
///
/// ```
/// use fluxmill_function::{Error, OrFail};
///
/// fn first(items: &[u32]) -> Result<u32, Error> {
///     items.first().copied().or_reject("an order needs at least one item")
/// }
/// assert_eq!(first(&[]).unwrap_err().reason(), "an order needs at least one item");
/// ```
pub trait OrFail<T> {
    /// What was asked for, or a reject with this reason, followed by the failure's own words.
    ///
    /// # Errors
    /// There was no value.
    fn or_reject(self, reason: impl Display) -> Result<T, Error>;

    /// What was asked for, or a retry with this reason, followed by the failure's own words.
    ///
    /// # Errors
    /// There was no value.
    fn or_retry(self, reason: impl Display) -> Result<T, Error>;
}

impl<T> OrFail<T> for Option<T> {
    fn or_reject(self, reason: impl Display) -> Result<T, Error> {
        self.ok_or_else(|| Error::reject(reason))
    }

    fn or_retry(self, reason: impl Display) -> Result<T, Error> {
        self.ok_or_else(|| Error::retry(reason))
    }
}

impl<T, E: Display> OrFail<T> for Result<T, E> {
    fn or_reject(self, reason: impl Display) -> Result<T, Error> {
        self.map_err(|error| Error::reject(format_args!("{reason}: {error}")))
    }

    fn or_retry(self, reason: impl Display) -> Result<T, Error> {
        self.map_err(|error| Error::retry(format_args!("{reason}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let error = Error::reject("ä".repeat(1000));
        assert_eq!(error.reason(), "ä".repeat(512));
        let odd = Error::reject(format_args!("a{}", "ä".repeat(1000)));
        assert_eq!(odd.reason().len(), 1023);
    }

    #[test]
    fn sources_are_part_of_the_reason() {
        let inner = std::io::Error::other("disk gone");
        let outer = std::io::Error::other(Outer(inner));
        assert_eq!(Error::from(outer).reason(), "cannot save: disk gone");
    }

    #[derive(Debug)]
    struct Outer(std::io::Error);
    impl Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot save")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
}
