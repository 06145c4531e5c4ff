//! How a connection fails.

use std::io;

use super::response::{ErrorCode, Malformed};
use crate::broker::{BrokerError, BrokerErrorKind};

/// The most characters of a broker's own words that an error repeats.
const WORDS_MAX: usize = 500;

/// What an error of a connection means for the one who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireErrorKind {
    /// No connection came about.
    Unreachable,
    /// No answer came in time.
    Timeout,
    /// The connection ended.
    Closed,
    /// The other side does not follow the protocol.
    Malformed,
    /// The broker refused this client, or its certificate is not valid.
    Denied,
    /// A setting cannot be used, here or with this broker.
    Settings,
    /// The broker does not speak a version that is spoken here.
    Unsupported,
}

impl WireErrorKind {
    /// Whether another connection may succeed.
    pub(crate) fn may_pass(self) -> bool {
        matches!(self, Self::Unreachable | Self::Timeout | Self::Closed)
    }
}

/// How a connection failed. A connection that failed cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct WireError {
    /// What the caller branches on.
    pub(crate) kind: WireErrorKind,
    /// Which broker, and why.
    pub(crate) reason: String,
}

impl WireError {
    /// An error of the broker at `peer`.
    pub(super) fn new(kind: WireErrorKind, peer: &str, reason: impl std::fmt::Display) -> Self {
        Self { kind, reason: format!("{peer}: {reason}") }
    }

    /// A response that does not follow the protocol.
    pub(super) fn malformed(peer: &str, api: &str, error: Malformed) -> Self {
        Self::new(WireErrorKind::Malformed, peer, format_args!("{api}: {error}"))
    }

    /// A stream that failed after it was set up.
    pub(super) fn io(peer: &str, error: &io::Error) -> Self {
        if let Some(error) = super::tls::error_of(error) {
            let (kind, reason) = super::tls::reason(error);
            return Self::new(kind, peer, reason);
        }
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the broker closed the connection".to_owned(),
            _ => format!("the connection broke: {error}"),
        };
        Self::new(WireErrorKind::Closed, peer, reason)
    }

    /// The same error as the pipeline sees it; `action` says what was being done.
    pub(crate) fn into_broker(self, action: impl Into<String>) -> BrokerError {
        let kind = match self.kind {
            WireErrorKind::Unreachable | WireErrorKind::Timeout | WireErrorKind::Closed => BrokerErrorKind::Unreachable,
            WireErrorKind::Denied => BrokerErrorKind::Denied,
            WireErrorKind::Settings | WireErrorKind::Unsupported => BrokerErrorKind::Settings,
            WireErrorKind::Malformed => BrokerErrorKind::Fatal,
        };
        BrokerError { kind, action: action.into(), reason: self.reason }
    }
}

impl ErrorCode {
    /// What the code means for the one who called, when no attempt is left.
    pub(crate) fn kind(self) -> BrokerErrorKind {
        match self {
            Self::UNKNOWN_TOPIC_OR_PARTITION | Self::UNKNOWN_TOPIC_ID => BrokerErrorKind::UnknownTopic,
            Self::MESSAGE_TOO_LARGE | Self::RECORD_LIST_TOO_LARGE => BrokerErrorKind::TooLarge,
            Self::UNSUPPORTED_SASL_MECHANISM
            | Self::ILLEGAL_SASL_STATE
            | Self::UNSUPPORTED_VERSION
            | Self::UNSUPPORTED_COMPRESSION_TYPE
            | Self::INVALID_TOPIC_EXCEPTION
            | Self::INVALID_REQUIRED_ACKS
            | Self::INVALID_GROUP_ID
            | Self::INVALID_CONFIG
            | Self::INVALID_TRANSACTION_TIMEOUT
            | Self::POLICY_VIOLATION => BrokerErrorKind::Settings,
            _ if self.is_denied() => BrokerErrorKind::Denied,
            _ if self.is_retriable() => BrokerErrorKind::Unreachable,
            _ => BrokerErrorKind::Fatal,
        }
    }
}

/// A broker's own words, fit for a terminal: no control characters, and not without end.
pub(super) fn words(text: &str) -> String {
    text.chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
