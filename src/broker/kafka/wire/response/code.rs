//! Kafka's error codes.

use std::fmt;

/// An error code of the protocol; what it means is told at <https://kafka.apache.org/protocol#protocol_error_codes>.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ErrorCode(pub(crate) i16);

/// What a code means for a client, by the class of the exception that Apache Kafka's own client makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// No error.
    Done,
    /// `RetriableException`: the same request may succeed later.
    Retriable,
    /// `InvalidMetadataException`, which is retriable: what the client knows of the cluster is out of date.
    Stale,
    /// `AuthorizationException` and `AuthenticationException`.
    Denied,
    /// Anything else.
    Fatal,
}

macro_rules! codes {
    ($($name:ident = $code:literal, $class:ident;)*) => {
        impl ErrorCode {
            $(
                #[allow(dead_code, reason = "the table is Kafka's, whole")]
                pub(crate) const $name: Self = Self($code);
            )*

            /// Its name; `UNKNOWN_ERROR_CODE` when this table is older than the broker.
            pub(crate) fn name(self) -> &'static str {
                match self.0 {
                    $($code => stringify!($name),)*
                    _ => "UNKNOWN_ERROR_CODE",
                }
            }

            fn class(self) -> Class {
                match self.0 {
                    $($code => Class::$class,)*
                    _ => Class::Fatal,
                }
            }
        }
    };
}

codes! {
    UNKNOWN_SERVER_ERROR = -1, Fatal;
    NONE = 0, Done;
    OFFSET_OUT_OF_RANGE = 1, Fatal;
    CORRUPT_MESSAGE = 2, Retriable;
    UNKNOWN_TOPIC_OR_PARTITION = 3, Stale;
    INVALID_FETCH_SIZE = 4, Fatal;
    LEADER_NOT_AVAILABLE = 5, Stale;
    NOT_LEADER_OR_FOLLOWER = 6, Stale;
    REQUEST_TIMED_OUT = 7, Retriable;
    BROKER_NOT_AVAILABLE = 8, Fatal;
    REPLICA_NOT_AVAILABLE = 9, Stale;
    MESSAGE_TOO_LARGE = 10, Fatal;
    STALE_CONTROLLER_EPOCH = 11, Fatal;
    OFFSET_METADATA_TOO_LARGE = 12, Fatal;
    NETWORK_EXCEPTION = 13, Stale;
    COORDINATOR_LOAD_IN_PROGRESS = 14, Retriable;
    COORDINATOR_NOT_AVAILABLE = 15, Retriable;
    NOT_COORDINATOR = 16, Retriable;
    INVALID_TOPIC_EXCEPTION = 17, Fatal;
    RECORD_LIST_TOO_LARGE = 18, Fatal;
    NOT_ENOUGH_REPLICAS = 19, Retriable;
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20, Retriable;
    INVALID_REQUIRED_ACKS = 21, Fatal;
    ILLEGAL_GENERATION = 22, Fatal;
    INCONSISTENT_GROUP_PROTOCOL = 23, Fatal;
    INVALID_GROUP_ID = 24, Fatal;
    UNKNOWN_MEMBER_ID = 25, Fatal;
    INVALID_SESSION_TIMEOUT = 26, Fatal;
    REBALANCE_IN_PROGRESS = 27, Fatal;
    INVALID_COMMIT_OFFSET_SIZE = 28, Fatal;
    TOPIC_AUTHORIZATION_FAILED = 29, Denied;
    GROUP_AUTHORIZATION_FAILED = 30, Denied;
    CLUSTER_AUTHORIZATION_FAILED = 31, Denied;
    INVALID_TIMESTAMP = 32, Fatal;
    UNSUPPORTED_SASL_MECHANISM = 33, Denied;
    ILLEGAL_SASL_STATE = 34, Denied;
    UNSUPPORTED_VERSION = 35, Fatal;
    TOPIC_ALREADY_EXISTS = 36, Fatal;
    INVALID_PARTITIONS = 37, Fatal;
    INVALID_REPLICATION_FACTOR = 38, Fatal;
    INVALID_REPLICA_ASSIGNMENT = 39, Fatal;
    INVALID_CONFIG = 40, Fatal;
    NOT_CONTROLLER = 41, Retriable;
    INVALID_REQUEST = 42, Fatal;
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43, Fatal;
    POLICY_VIOLATION = 44, Fatal;
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45, Fatal;
    DUPLICATE_SEQUENCE_NUMBER = 46, Fatal;
    INVALID_PRODUCER_EPOCH = 47, Fatal;
    INVALID_TXN_STATE = 48, Fatal;
    INVALID_PRODUCER_ID_MAPPING = 49, Fatal;
    INVALID_TRANSACTION_TIMEOUT = 50, Fatal;
    CONCURRENT_TRANSACTIONS = 51, Retriable;
    TRANSACTION_COORDINATOR_FENCED = 52, Fatal;
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53, Denied;
    SECURITY_DISABLED = 54, Fatal;
    OPERATION_NOT_ATTEMPTED = 55, Fatal;
    KAFKA_STORAGE_ERROR = 56, Stale;
    LOG_DIR_NOT_FOUND = 57, Fatal;
    SASL_AUTHENTICATION_FAILED = 58, Denied;
    UNKNOWN_PRODUCER_ID = 59, Fatal;
    REASSIGNMENT_IN_PROGRESS = 60, Fatal;
    DELEGATION_TOKEN_AUTH_DISABLED = 61, Fatal;
    DELEGATION_TOKEN_NOT_FOUND = 62, Fatal;
    DELEGATION_TOKEN_OWNER_MISMATCH = 63, Fatal;
    DELEGATION_TOKEN_REQUEST_NOT_ALLOWED = 64, Fatal;
    DELEGATION_TOKEN_AUTHORIZATION_FAILED = 65, Denied;
    DELEGATION_TOKEN_EXPIRED = 66, Fatal;
    INVALID_PRINCIPAL_TYPE = 67, Fatal;
    NON_EMPTY_GROUP = 68, Fatal;
    GROUP_ID_NOT_FOUND = 69, Fatal;
    FETCH_SESSION_ID_NOT_FOUND = 70, Retriable;
    INVALID_FETCH_SESSION_EPOCH = 71, Retriable;
    LISTENER_NOT_FOUND = 72, Stale;
    TOPIC_DELETION_DISABLED = 73, Fatal;
    FENCED_LEADER_EPOCH = 74, Stale;
    UNKNOWN_LEADER_EPOCH = 75, Retriable;
    UNSUPPORTED_COMPRESSION_TYPE = 76, Fatal;
    STALE_BROKER_EPOCH = 77, Fatal;
    OFFSET_NOT_AVAILABLE = 78, Retriable;
    MEMBER_ID_REQUIRED = 79, Fatal;
    PREFERRED_LEADER_NOT_AVAILABLE = 80, Stale;
    GROUP_MAX_SIZE_REACHED = 81, Fatal;
    FENCED_INSTANCE_ID = 82, Fatal;
    ELIGIBLE_LEADERS_NOT_AVAILABLE = 83, Stale;
    ELECTION_NOT_NEEDED = 84, Stale;
    NO_REASSIGNMENT_IN_PROGRESS = 85, Fatal;
    GROUP_SUBSCRIBED_TO_TOPIC = 86, Fatal;
    INVALID_RECORD = 87, Fatal;
    UNSTABLE_OFFSET_COMMIT = 88, Retriable;
    THROTTLING_QUOTA_EXCEEDED = 89, Retriable;
    PRODUCER_FENCED = 90, Fatal;
    RESOURCE_NOT_FOUND = 91, Fatal;
    DUPLICATE_RESOURCE = 92, Fatal;
    UNACCEPTABLE_CREDENTIAL = 93, Fatal;
    INCONSISTENT_VOTER_SET = 94, Fatal;
    INVALID_UPDATE_VERSION = 95, Fatal;
    FEATURE_UPDATE_FAILED = 96, Fatal;
    PRINCIPAL_DESERIALIZATION_FAILURE = 97, Fatal;
    SNAPSHOT_NOT_FOUND = 98, Fatal;
    POSITION_OUT_OF_RANGE = 99, Fatal;
    UNKNOWN_TOPIC_ID = 100, Stale;
    DUPLICATE_BROKER_REGISTRATION = 101, Fatal;
    BROKER_ID_NOT_REGISTERED = 102, Fatal;
    INCONSISTENT_TOPIC_ID = 103, Stale;
    INCONSISTENT_CLUSTER_ID = 104, Fatal;
    TRANSACTIONAL_ID_NOT_FOUND = 105, Fatal;
    FETCH_SESSION_TOPIC_ID_ERROR = 106, Retriable;
    INELIGIBLE_REPLICA = 107, Fatal;
    NEW_LEADER_ELECTED = 108, Fatal;
    OFFSET_MOVED_TO_TIERED_STORAGE = 109, Fatal;
    FENCED_MEMBER_EPOCH = 110, Fatal;
    UNRELEASED_INSTANCE_ID = 111, Fatal;
    UNSUPPORTED_ASSIGNOR = 112, Fatal;
    STALE_MEMBER_EPOCH = 113, Fatal;
    MISMATCHED_ENDPOINT_TYPE = 114, Fatal;
    UNSUPPORTED_ENDPOINT_TYPE = 115, Fatal;
    UNKNOWN_CONTROLLER_ID = 116, Fatal;
    UNKNOWN_SUBSCRIPTION_ID = 117, Fatal;
    TELEMETRY_TOO_LARGE = 118, Fatal;
    INVALID_REGISTRATION = 119, Fatal;
    TRANSACTION_ABORTABLE = 120, Fatal;
    INVALID_RECORD_STATE = 121, Fatal;
    SHARE_SESSION_NOT_FOUND = 122, Retriable;
    INVALID_SHARE_SESSION_EPOCH = 123, Retriable;
    FENCED_STATE_EPOCH = 124, Fatal;
    INVALID_VOTER_KEY = 125, Fatal;
    DUPLICATE_VOTER = 126, Fatal;
    VOTER_NOT_FOUND = 127, Fatal;
    INVALID_REGULAR_EXPRESSION = 128, Fatal;
    REBOOTSTRAP_REQUIRED = 129, Fatal;
    STREAMS_INVALID_TOPOLOGY = 130, Fatal;
    STREAMS_INVALID_TOPOLOGY_EPOCH = 131, Fatal;
    STREAMS_TOPOLOGY_FENCED = 132, Fatal;
    SHARE_SESSION_LIMIT_REACHED = 133, Retriable;
}

impl ErrorCode {
    /// Whether there is no error.
    pub(crate) fn is_ok(self) -> bool {
        self == Self::NONE
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_retriable(self) -> bool {
        matches!(self.class(), Class::Retriable | Class::Stale)
    }

    /// Whether the metadata must be refreshed before another attempt.
    pub(crate) fn is_stale_metadata(self) -> bool {
        self.class() == Class::Stale
    }

    /// Whether the coordinator must be looked up before another attempt.
    pub(crate) fn is_stale_coordinator(self) -> bool {
        matches!(self, Self::COORDINATOR_NOT_AVAILABLE | Self::NOT_COORDINATOR)
    }

    /// Whether the broker refused this client: its credentials, or for want of a permission.
    pub(crate) fn is_denied(self) -> bool {
        self.class() == Class::Denied
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
