//! The halves of a connection: frames out, frames in.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader};
use kafka_protocol::protocol::{Encodable as _, StrBytes};
use tokio::io::AsyncReadExt as _;

use crate::broker::kafka::wire::error::{WireError, WireErrorKind};
use crate::broker::kafka::wire::response::Call;
use crate::broker::kafka::wire::stream::{ReadHalf, WriteHalf};
use crate::broker::kafka::wire::versions::Versions;

/// What is read at once where no large response is under way: small responses cost one read together.
const READ: usize = 16 << 10;
/// The largest buffer that is kept for a response to come.
const SPARE_MAX: usize = 8 << 20;
/// So many are kept: the last response is as a rule still read when the next comes.
const SPARES: usize = 2;
/// Buffers of large responses have a multiple of this size, so that the next response finds room in an old one's.
const SPARE_STEP: usize = 256 << 10;

/// A request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The answer carries the same number. Answers come in the order of the requests.
    pub(crate) correlation: i32,
    /// The version, which the answer has too.
    pub(crate) version: i16,
}

/// The half of a connection that sends requests.
pub(crate) struct Requests {
    write: WriteHalf,
    peer: Arc<str>,
    client_id: StrBytes,
    versions: Versions,
    correlation: i32,
    /// Where requests are encoded; kept from one to the next.
    frame: BytesMut,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Requests {
    pub(super) fn new(write: WriteHalf, peer: Arc<str>, client_id: String) -> Self {
        let client_id = StrBytes::from_string(client_id);
        Self { write, peer, client_id, versions: Versions::default(), correlation: 0, frame: BytesMut::new() }
    }

    pub(super) fn set_versions(&mut self, versions: Versions) {
        self.versions = versions;
    }

    /// The broker's address, for people.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// The version in which this broker is asked.
    ///
    /// # Errors
    /// When there is no common one.
    pub(crate) fn version<R: Call>(&self) -> Result<i16, WireError> {
        let version = self.versions.negotiate::<R>();
        version.map_err(|reason| WireError::new(WireErrorKind::Unsupported, &self.peer, reason))
    }

    /// Sends a request.
    ///
    /// Not cancel safe: after a dropped future the connection cannot be used any more.
    ///
    /// # Errors
    /// When the connection fails, or there is no common version.
    #[cfg(test)]
    pub(crate) async fn send<R: Call>(&mut self, request: &R) -> Result<Sent, WireError> {
        let version = self.version::<R>()?;
        self.send_as(request, version).await
    }

    /// Sends a request in this version.
    pub(super) async fn send_as<R: Call>(&mut self, request: &R, version: i16) -> Result<Sent, WireError> {
        let header = self.begin(R::API, version, R::header_version(version));
        let encoded = header.and_then(|()| request.encode(&mut self.frame, version));
        encoded.map_err(|error| self.not_encodable(R::API, version, &error))?;
        self.write(version, &[]).await
    }

    /// The correlation id that the next request will have.
    pub(crate) fn next_correlation(&self) -> i32 {
        self.correlation.wrapping_add(1)
    }

    /// Sends a request whose body the caller encoded, in pieces, which are not copied together.
    ///
    /// Not cancel safe: after a dropped future the connection cannot be used any more.
    ///
    /// # Errors
    /// When the connection fails, or the request is larger than the protocol allows.
    pub(crate) async fn send_pieces(
        &mut self,
        api: ApiKey,
        version: i16,
        header_version: i16,
        pieces: &[&[u8]],
    ) -> Result<Sent, WireError> {
        let header = self.begin(api, version, header_version);
        header.map_err(|error| self.not_encodable(api, version, &error))?;
        self.write(version, pieces).await
    }

    fn not_encodable(&self, api: ApiKey, version: i16, error: &impl fmt::Display) -> WireError {
        let reason = format!("{api:?} cannot be asked in version {version}: {error}");
        WireError::new(WireErrorKind::Unsupported, &self.peer, reason)
    }

    /// Begins a frame: room for its length, and the header.
    fn begin(&mut self, api: ApiKey, version: i16, header_version: i16) -> anyhow::Result<()> {
        self.correlation = self.correlation.wrapping_add(1);
        self.frame.clear();
        self.frame.put_i32(0);
        let header = RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(self.client_id.clone()));
        header.encode(&mut self.frame, header_version)
    }

    /// Writes the frame, its length, and what goes on in `pieces`.
    async fn write(&mut self, version: i16, pieces: &[&[u8]]) -> Result<Sent, WireError> {
        let length = self.frame.len() - 4 + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let Ok(prefix) = i32::try_from(length) else {
            let reason = format!("a request of {length} bytes is larger than the protocol allows");
            return Err(WireError::new(WireErrorKind::Settings, &self.peer, reason));
        };
        self.frame[..4].copy_from_slice(&prefix.to_be_bytes());
        let written = self.write.write_pieces(&self.frame, pieces).await;
        written.map_err(|error| WireError::io(&self.peer, &error))?;
        Ok(Sent { correlation: self.correlation, version })
    }
}

/// A response whose length is known.
struct Partial {
    body: BytesMut,
    length: usize,
}

/// The half of a connection that receives responses.
pub(crate) struct Responses {
    read: ReadHalf,
    peer: Arc<str>,
    max: usize,
    /// What was read and not yet given out.
    buffer: BytesMut,
    /// A response too large for `buffer` that is under way.
    partial: Option<Partial>,
    /// The buffers of the last large responses, each used again once nobody holds its response any more, or
    /// for what fits into the room behind it.
    spares: VecDeque<BytesMut>,
}

impl fmt::Debug for Responses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responses").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Responses {
    pub(super) fn new(read: ReadHalf, peer: Arc<str>, max: usize) -> Self {
        Self { read, peer, max, buffer: BytesMut::new(), partial: None, spares: VecDeque::new() }
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The next response: its correlation id and what follows that, in a buffer of its own when it is large.
    ///
    /// Cancel safe: what was read so far is kept for the next call.
    ///
    /// # Errors
    /// When the connection fails, and when the response is longer than [`super::Options::max_response`].
    pub(crate) async fn receive(&mut self) -> Result<(i32, Bytes), WireError> {
        let mut body = loop {
            if let Some(partial) = &mut self.partial {
                let missing = partial.length - partial.body.len();
                if missing == 0 {
                    break self.finish_partial();
                }
                let read = self.read.read_buf(&mut (&mut partial.body).limit(missing)).await;
                self.count(read)?;
                continue;
            }
            if let Some(length) = self.length()? {
                let whole = 4 + length;
                if self.buffer.len() >= whole {
                    let mut frame = self.buffer.split_to(whole);
                    frame.advance(4);
                    break frame.freeze();
                }
                if whole > READ {
                    self.begin_partial(length);
                    continue;
                }
            }
            self.buffer.reserve(READ);
            let read = self.read.read_buf(&mut self.buffer).await;
            self.count(read)?;
        };
        Ok((body.get_i32(), body))
    }

    /// The length of the next response, once it is known.
    fn length(&self) -> Result<Option<usize>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let malformed = |reason: String| Err(WireError::new(WireErrorKind::Malformed, &self.peer, reason));
        match usize::try_from(i32::from_be_bytes(*prefix)) {
            Ok(length) if (4..=self.max).contains(&length) => Ok(Some(length)),
            // The start of a TLS record: an alert or a handshake, version 3.x.
            _ if matches!(prefix, [0x15 | 0x16, 3, ..]) => {
                let reason = "the answer is TLS; does this port expect TLS? Set `tls` on the connection";
                Err(WireError::new(WireErrorKind::Settings, &self.peer, reason))
            }
            Ok(length) if length > self.max => {
                malformed(format!("a response of {length} bytes, where {} is the most that is accepted", self.max))
            }
            _ => malformed("a response with an impossible length; does another protocol answer here?".to_owned()),
        }
    }

    /// Moves what is there of a large response to a buffer of its size.
    fn begin_partial(&mut self, length: usize) {
        self.buffer.advance(4);
        let free = self.spares.iter_mut().position(|spare| spare.try_reclaim(length));
        let mut body = free
            .and_then(|at| self.spares.remove(at))
            .unwrap_or_else(|| BytesMut::with_capacity(length.next_multiple_of(SPARE_STEP)));
        body.extend_from_slice(&self.buffer);
        self.buffer.clear();
        self.partial = Some(Partial { body, length });
    }

    fn finish_partial(&mut self) -> Bytes {
        let Some(Partial { mut body, length }) = self.partial.take() else { return Bytes::new() };
        let whole = body.split().freeze();
        if length <= SPARE_MAX {
            if self.spares.len() == SPARES {
                self.spares.pop_front();
            }
            self.spares.push_back(body);
        }
        whole
    }

    fn count(&self, read: std::io::Result<usize>) -> Result<(), WireError> {
        match read {
            Ok(0) => Err(WireError::io(&self.peer, &std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(WireError::io(&self.peer, &error)),
        }
    }
}
