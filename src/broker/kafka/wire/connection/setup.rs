//! The set-up of a connection, step by step, under one deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use kafka_protocol::messages::ApiVersionsRequest;
use kafka_protocol::protocol::StrBytes;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::{Connection, Options, Requests, Responses};
use crate::broker::kafka::wire::error::{WireError, WireErrorKind};
use crate::broker::kafka::wire::response::{ApiVersionsResponse, ErrorCode, decode};
use crate::broker::kafka::wire::versions::Versions;
use crate::broker::kafka::wire::{sasl, stream};

/// The largest response before the broker has shown who it is, in bytes.
const SETUP_MAX: usize = 1 << 20;

pub(super) async fn open(host: &str, port: u16, options: &Options) -> Result<Connection, WireError> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let peer: Arc<str> = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }.into();
    let setup = Setup { peer, options, deadline: Instant::now() + options.connect_timeout };
    let tcp = setup.step("a TCP connection", setup.connect(host, port)).await?;
    let (read, write) = match &options.tls {
        None => stream::plain(tcp),
        Some(tls) => stream::encrypted(setup.step("TLS", tls.connect(host, &setup.peer, tcp)).await?),
    };
    let mut connection = Connection {
        requests: Requests::new(write, setup.peer.clone(), options.client_id.clone()),
        responses: Responses::new(read, setup.peer.clone(), options.max_response.min(SETUP_MAX)),
        expires: None,
        welcome: true,
    };
    let versions = setup.step("ApiVersions", setup.negotiate(&mut connection)).await?;
    connection.requests.set_versions(versions);
    if let Some(spec) = &options.sasl {
        let lifetime = setup.step("SASL", sasl::authenticate(&mut connection, spec)).await?;
        // A lifetime too long for the clock is none.
        connection.expires = lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime / 100 * 85));
    }
    connection.responses.set_max(options.max_response);
    connection.welcome = options.sasl.is_some();
    Ok(connection)
}

struct Setup<'a> {
    peer: Arc<str>,
    options: &'a Options,
    deadline: Instant,
}

impl Setup<'_> {
    /// A step, until the deadline of them all.
    async fn step<T>(&self, name: &str, step: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
        match timeout_at(self.deadline, step).await {
            Ok(Ok(value)) => Ok(value),
            // A connection that ends during its set-up never came about.
            Ok(Err(error)) if error.kind == WireErrorKind::Closed => {
                Err(WireError { kind: WireErrorKind::Unreachable, ..error })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let limit = self.options.connect_timeout.as_millis();
                Err(WireError::new(WireErrorKind::Timeout, &self.peer, format_args!("no {name} within {limit} ms")))
            }
        }
    }

    /// Tries the addresses of a name in turn; none may take the time of those after it.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, WireError> {
        let unreachable = |reason: String| WireError::new(WireErrorKind::Unreachable, &self.peer, reason);
        let addresses: Vec<SocketAddr> = match lookup_host((host, port)).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => return Err(unreachable(format!("the name cannot be resolved: {error}"))),
        };
        let mut last = "the name has no address".to_owned();
        for (tried, address) in addresses.iter().enumerate() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match tokio::time::timeout(share, connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("{address} does not answer"),
            }
        }
        Err(unreachable(last))
    }

    /// Asks what the broker speaks. Brokers before 2.4 answer a newer version than they know with an error (KIP-511);
    /// they are asked again.
    async fn negotiate(&self, connection: &mut Connection) -> Result<Versions, WireError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("fluxmill"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut response = self.ask(connection, &request, 3).await?;
        if response.error == ErrorCode::UNSUPPORTED_VERSION {
            response = self.ask(connection, &ApiVersionsRequest::default(), 0).await?;
        }
        if !response.error.is_ok() {
            let kind = WireErrorKind::Unsupported;
            let reason = format!("ApiVersions failed: {}; use `client: librdkafka` with this broker", response.error);
            return Err(WireError::new(kind, &self.peer, reason));
        }
        Ok(Versions::new(response.apis))
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        request: &ApiVersionsRequest,
        version: i16,
    ) -> Result<ApiVersionsResponse, WireError> {
        let body = match connection.ask(request, version).await {
            Ok(body) => body,
            Err(mut error) => {
                if error.kind == WireErrorKind::Closed && self.options.tls.is_none() {
                    error.reason.push_str("; does this port expect TLS?");
                }
                return Err(error);
            }
        };
        // In whatever version the rest is: only the code is looked at.
        if body.starts_with(&ErrorCode::UNSUPPORTED_VERSION.0.to_be_bytes()) {
            return Ok(ApiVersionsResponse { error: ErrorCode::UNSUPPORTED_VERSION, apis: Vec::new() });
        }
        let response = decode::<ApiVersionsRequest>(body, version);
        response.map_err(|error| WireError::malformed(&self.peer, "ApiVersions", error))
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
