//! What librdkafka's errors mean for the one who called.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::TopicPartition;

/// What a code means.
pub(super) fn kind(code: RDKafkaErrorCode) -> BrokerErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::NetworkException
        | Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable
        | Code::NodeUpdate => BrokerErrorKind::Unreachable,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => BrokerErrorKind::UnknownTopic,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => BrokerErrorKind::Denied,
        Code::SSL
        | Code::InvalidArgument
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::GroupMaxSizeReached => BrokerErrorKind::Settings,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => BrokerErrorKind::TooLarge,
        // What waited when the producer was closed.
        Code::PurgeQueue | Code::PurgeInflight => BrokerErrorKind::Closed,
        _ => BrokerErrorKind::Fatal,
    }
}

/// The code inside an error, where it has one.
pub(super) fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// An error with a code.
pub(super) fn coded(action: impl Into<String>, code: RDKafkaErrorCode, reason: &str) -> BrokerError {
    let reason = if reason.is_empty() { code.to_string() } else { reason.to_owned() };
    BrokerError { kind: kind(code), action: action.into(), reason }
}

/// An error as the client crate gave it.
pub(super) fn failed(action: impl Into<String>, error: &KafkaError) -> BrokerError {
    let (kind, reason) = match error {
        // The value stays out of it: it may be a secret.
        KafkaError::ClientConfig(_, description, name, _) => {
            (BrokerErrorKind::Settings, format!("setting `{name}`: {description}"))
        }
        KafkaError::ClientCreation(reason) | KafkaError::AdminOpCreation(reason) => {
            (BrokerErrorKind::Settings, reason.clone())
        }
        KafkaError::Nul(_) => (BrokerErrorKind::Settings, "a name has a NUL byte in it".into()),
        other => match code(other) {
            Some(code) => (kind(code), code.to_string()),
            None => (BrokerErrorKind::Fatal, other.to_string()),
        },
    };
    BrokerError { kind, action: action.into(), reason }
}

/// A partition's offsets went back. The watermark only rises, so going on would confirm events that were never
/// processed; the next start begins with what is kept.
pub(super) fn went_back(partition: &TopicPartition, last: i64, offset: i64) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Fatal,
        action: format!("read partition {} of topic {}", partition.partition, partition.topic),
        reason: format!(
            "its offsets went back, from {last} to {offset}: the topic was truncated, or deleted and made anew; \
             start again to go on with what it keeps"
        ),
    }
}

/// Whether an authentication failed only because the connection broke in the middle of it, as it does when a broker
/// goes down.
pub(super) fn is_broken_handshake(reason: &str) -> bool {
    ["transport", "Disconnected", "isconnect", "imed out"].iter().any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_errors() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.passwort", "hunter2");
        let Err(error) = config.create_native_config() else { panic!("a misspelt setting was taken") };
        let error = failed("connect", &error);
        assert_eq!(error.kind, BrokerErrorKind::Settings);
        assert!(error.reason.contains("sasl.passwort") && !error.to_string().contains("hunter2"), "{error}");
    }
}
