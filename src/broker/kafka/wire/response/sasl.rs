//! Authentication: SaslHandshake and SaslAuthenticate (KIP-152).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{ErrorCode, Malformed, Reader, Response};

/// Whether a mechanism may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SaslHandshakeResponse {
    /// `UNSUPPORTED_SASL_MECHANISM` when it may not.
    pub(crate) error: ErrorCode,
    /// The mechanisms that may.
    pub(crate) mechanisms: Vec<String>,
}

impl Response for SaslHandshakeResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        Ok(Self { error: ErrorCode(reader.i16()?), mechanisms: reader.array(2, Reader::string)? })
    }
}

/// A step of an authentication.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SaslAuthenticateResponse {
    /// `SASL_AUTHENTICATION_FAILED` when the broker refuses.
    pub(crate) error: ErrorCode,
    /// The broker's words on the error.
    pub(crate) message: Option<String>,
    /// What the mechanism says.
    pub(crate) challenge: Bytes,
    /// For how long the broker serves this connection from now on (KIP-368); `None` without a limit.
    pub(crate) lifetime: Option<Duration>,
}

impl fmt::Debug for SaslAuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, message, challenge: _, lifetime } = self;
        f.debug_struct("SaslAuthenticateResponse")
            .field("error", error)
            .field("message", message)
            .field("lifetime", lifetime)
            .finish_non_exhaustive()
    }
}

impl Response for SaslAuthenticateResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        let (error, message) = (ErrorCode(reader.i16()?), reader.nullable_string()?);
        let challenge = reader.nullable_bytes()?.unwrap_or_default();
        let lifetime = u64::try_from(reader.i64()?).ok().filter(|millis| *millis > 0).map(Duration::from_millis);
        reader.skip_tagged()?;
        Ok(Self { error, message, challenge, lifetime })
    }
}
