//! Where answers come to.
//!
//! A server looks up who listens to a subject, and remembers about a thousand subjects; each other one costs it nearly as
//! much as a message. So there are only as many as there are messages on their way, used again and again, the last one
//! that was given back first.

use async_nats::{Subject, Subscriber};

use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Subjects for answers, each for one message at a time.
pub(super) struct Inbox {
    name: String,
    /// What the subjects of now begin with. Answers to those of before are not waited for.
    prefix: String,
    generation: u64,
    subjects: Vec<Subject>,
    /// For which message each is.
    lent: Vec<Option<u64>>,
    free: Vec<usize>,
}

impl Inbox {
    /// Sets one up, with what comes to it.
    ///
    /// # Errors
    /// When the client was closed.
    pub(super) async fn open(connection: &Connection) -> Result<(Self, Subscriber), BrokerError> {
        let name = connection.client.new_inbox();
        let answers = connection
            .client
            .subscribe(format!("{name}.*.*"))
            .await
            .map_err(|error| failed(BrokerErrorKind::Fatal, format!("publish on {}", connection.address), error))?;
        Ok((Self::new(name), answers))
    }

    fn new(name: String) -> Self {
        let prefix = format!("{name}.0.");
        Self { name, prefix, generation: 0, subjects: Vec::new(), lent: Vec::new(), free: Vec::new() }
    }

    /// Where the answer to a message shall come to.
    pub(super) fn lend(&mut self, number: u64) -> Subject {
        let at = self.free.pop().unwrap_or_else(|| {
            self.subjects.push(format!("{}{}", self.prefix, self.subjects.len()).into());
            self.lent.push(None);
            self.lent.len() - 1
        });
        self.lent[at] = Some(number);
        self.subjects[at].clone()
    }

    /// To which message this is the answer; its subject is free again. None for what is not waited for any more.
    pub(super) fn take_back(&mut self, subject: &str) -> Option<u64> {
        let at: usize = subject.strip_prefix(self.prefix.as_str())?.parse().ok()?;
        let number = self.lent.get_mut(at)?.take()?;
        self.free.push(at);
        Some(number)
    }

    /// No answer is waited for any more.
    pub(super) fn forget(&mut self) {
        self.generation += 1;
        self.prefix = format!("{}.{}.", self.name, self.generation);
        self.subjects.clear();
        self.lent.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_to_what_was_given_up_are_none() {
        let mut inbox = Inbox::new("_INBOX.x".to_owned());
        let before = inbox.lend(7);
        inbox.forget();
        let after = inbox.lend(8);
        assert_eq!(inbox.take_back(&before), None);
        assert_eq!(inbox.take_back(&after), Some(8));
        assert_eq!(inbox.take_back(&after), None);
        assert_eq!(inbox.take_back("_INBOX.x.1.99"), None);
    }

    proptest! {
        /// In whatever order answers come, and some twice: each is to one message, and there are no more subjects than
        /// messages were on their way at once.
        #[test]
        fn every_answer_is_to_its_message(steps in prop::collection::vec((0..4_u8, 0..100_usize), 1..200)) {
            let mut inbox = Inbox::new("_INBOX.x".to_owned());
            let (mut on_way, mut next, mut most): (Vec<(Subject, u64)>, _, _) = (Vec::new(), 0, 0);
            for (step, at) in steps {
                if step < 2 || on_way.is_empty() {
                    on_way.push((inbox.lend(next), next));
                    next += 1;
                    most = most.max(on_way.len());
                } else {
                    let (subject, number) = on_way.swap_remove(at % on_way.len());
                    prop_assert_eq!(inbox.take_back(&subject), Some(number));
                    if step == 3 {
                        prop_assert_eq!(inbox.take_back(&subject), None);
                    }
                }
            }
            prop_assert!(inbox.subjects.len() <= most);
        }
    }
}
