//! A consumer that leaves its group when it is dropped, and is not waited for any longer than the group would.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::client::Consumer;

/// How long the leave may take. A broker that is there answers in milliseconds. One that is not holds librdkafka up
/// for minutes: before it leaves it waits for every commit under way, each sent again twice after `socket.timeout.ms`.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module. Whoever holds the consumer beside this must let go of it before.
pub(super) struct Member {
    /// There until the drop.
    consumer: Option<Arc<Consumer>>,
    address: String,
}

impl Member {
    /// A consumer of the cluster at `address`.
    pub(super) fn new(consumer: Consumer, address: &str) -> Self {
        Self { consumer: Some(Arc::new(consumer)), address: address.to_owned() }
    }
}

impl Deref for Member {
    type Target = Arc<Consumer>;

    fn deref(&self) -> &Self::Target {
        self.consumer.as_ref().expect("the consumer is taken by the drop only")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        let (left, waits) = sync_channel(1);
        #[expect(clippy::disallowed_methods, reason = "joined while there is time; after that it cannot be")]
        // Where no thread can be had the closure is dropped here, and the consumer with it.
        let leaving = std::thread::Builder::new().name("leave".to_owned()).spawn(move || {
            drop(consumer);
            let _ = left.send(());
        });
        if leaving.is_ok() && waits.recv_timeout(LEAVE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            let address = &self.address;
            tracing::warn!(
                target: "fluxmill::kafka",
                "{address} did not take the leave from the group; others get the partitions after `session.timeout.ms`"
            );
        }
    }
}
