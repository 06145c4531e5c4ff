//! Where answers come to.
//!
//! A server looks up who listens to a subject, and remembers some hundreds of subjects; each other one costs it nearly as
//! much as a message. So messages that are sent next to each other share a subject, as a run. When one stream has
//! answered to it as often as messages were sent, and always that it has stored one, it has all of them, in whatever
//! order the answers come. What is said of one message only cannot be told from a run: then everything that is on its
//! way is sent again, each message with a subject of its own.

use std::ops::Range;

use async_nats::{Subject, Subscriber};

use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Messages of one run at most.
const RUN_MESSAGES: usize = 64;

/// Subjects for answers, each for one run at a time.
pub(super) struct Inbox {
    name: String,
    /// What the subjects of now begin with. Answers to those of before are not waited for.
    prefix: String,
    generation: u64,
    subjects: Vec<Subject>,
    /// For which messages each is.
    runs: Vec<Option<Run>>,
    free: Vec<usize>,
    /// The run that the next message is a part of.
    open: Option<usize>,
    /// The number after the last message.
    next: u64,
    /// Messages before this number are each a run of their own.
    alone: u64,
}

/// Messages whose answers come to one subject.
struct Run {
    numbers: Range<u64>,
    sent: usize,
    answered: usize,
    /// Who has stored those that were answered.
    stream: Box<[u8]>,
}

/// What an answer is to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Nothing that is waited for.
    Nothing,
    /// One of several messages, of which others are not answered yet.
    Some,
    /// These messages, as far as they are on their way.
    These(Range<u64>),
    /// One of several messages, and it does not say which. Everything that is on its way has to be sent again.
    Unclear,
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
        let (subjects, runs, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, prefix, generation: 0, subjects, runs, free, open: None, next: 0, alone: 0 }
    }

    /// Where the answer to a message shall come to. Numbers ascend.
    pub(super) fn lend(&mut self, number: u64) -> Subject {
        self.next = self.next.max(number + 1);
        let at = self.open.take().unwrap_or_else(|| self.begin(number));
        let run = self.runs[at].as_mut().expect("an open run is there");
        (run.numbers.end, run.sent) = (number + 1, run.sent + 1);
        self.open = (run.sent < RUN_MESSAGES && number >= self.alone).then_some(at);
        self.subjects[at].clone()
    }

    fn begin(&mut self, number: u64) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.subjects.push(format!("{}{}", self.prefix, self.subjects.len()).into());
            self.runs.push(None);
            self.runs.len() - 1
        });
        self.runs[at] = Some(Run { numbers: number..number, sent: 0, answered: 0, stream: Box::default() });
        at
    }

    /// The next message is not a part of the run of the last one.
    pub(super) fn end_run(&mut self) {
        self.open = None;
    }

    /// The last message was not sent after all.
    pub(super) fn take_back(&mut self, subject: &str) {
        let Some(at) = self.place(subject) else { return };
        let run = self.runs[at].take_if(|run| run.sent == 1);
        match (run, &mut self.runs[at]) {
            (Some(_), _) => {
                self.free.push(at);
                self.open = None;
            }
            (None, Some(run)) => run.sent -= 1,
            (None, None) => {}
        }
    }

    /// What an answer is to that came to this subject; `stored_by` is the stream that says that it has stored a message.
    pub(super) fn answered(&mut self, subject: &str, stored_by: Option<&[u8]>) -> Answered {
        let Some(at) = self.place(subject) else { return Answered::Nothing };
        self.open = self.open.filter(|open| *open != at);
        let Some(run) = &mut self.runs[at] else { return Answered::Nothing };
        if run.sent > 1 {
            match stored_by {
                None => {
                    self.alone = self.next;
                    return Answered::Unclear;
                }
                Some(stream) if run.answered > 0 && *run.stream != *stream => {
                    // So it will be with others; which targets these are is not worth knowing here.
                    self.alone = u64::MAX;
                    return Answered::Unclear;
                }
                Some(stream) if run.answered == 0 => run.stream = stream.into(),
                Some(_) => {}
            }
        }
        run.answered += 1;
        if run.answered < run.sent {
            return Answered::Some;
        }
        self.free.push(at);
        self.runs[at].take().map_or(Answered::Nothing, |run| Answered::These(run.numbers))
    }

    fn place(&self, subject: &str) -> Option<usize> {
        let at = subject.strip_prefix(self.prefix.as_str())?.parse().ok()?;
        (at < self.runs.len()).then_some(at)
    }

    /// No answer is waited for any more.
    pub(super) fn forget(&mut self) {
        self.generation += 1;
        self.prefix = format!("{}.{}.", self.name, self.generation);
        self.subjects.clear();
        self.runs.clear();
        self.free.clear();
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const STREAM: Option<&[u8]> = Some(b"ORDERS");

    fn inbox() -> Inbox {
        Inbox::new("_INBOX.x".to_owned())
    }

    #[test]
    fn answers_to_what_was_given_up_are_none() {
        let mut inbox = inbox();
        let before = inbox.lend(7);
        inbox.forget();
        let after = inbox.lend(8);
        assert_eq!(inbox.answered(&before, STREAM), Answered::Nothing);
        assert_eq!(inbox.answered(&after, STREAM), Answered::These(8..9));
        assert_eq!(inbox.answered(&after, STREAM), Answered::Nothing);
        assert_eq!(inbox.answered("_INBOX.x.1.99", STREAM), Answered::Nothing);
    }

    #[test]
    fn a_run_is_stored_when_all_of_it_is() {
        let mut inbox = inbox();
        let subjects: Vec<_> = (0..3).map(|number| inbox.lend(number)).collect();
        inbox.end_run();
        let other = inbox.lend(3);
        assert!(subjects.iter().all(|subject| *subject == subjects[0]) && other != subjects[0]);
        assert_eq!(inbox.answered(&subjects[0], STREAM), Answered::Some);
        assert_eq!(inbox.answered(&subjects[0], STREAM), Answered::Some);
        assert_eq!(inbox.answered(&other, STREAM), Answered::These(3..4));
        assert_eq!(inbox.answered(&subjects[0], STREAM), Answered::These(0..3));
    }

    #[test]
    fn what_was_not_sent_is_not_waited_for() {
        let mut inbox = inbox();
        let subject = inbox.lend(0);
        inbox.lend(1);
        inbox.take_back(&subject);
        assert_eq!(inbox.answered(&subject, STREAM), Answered::These(0..2));
        let subject = inbox.lend(2);
        inbox.take_back(&subject);
        assert_eq!(inbox.answered(&subject, STREAM), Answered::Nothing);
    }

    #[test]
    fn a_refusal_is_of_a_message_that_is_alone() {
        let mut inbox = inbox();
        let subject = inbox.lend(0);
        inbox.lend(1);
        assert_eq!(inbox.answered(&subject, STREAM), Answered::Some);
        assert_eq!(inbox.answered(&subject, None), Answered::Unclear);
        inbox.forget();
        let [one, other, later, last] = [0, 1, 2, 3].map(|number| inbox.lend(number));
        assert!(one != other && other != later && later == last);
        assert_eq!(inbox.answered(&one, None), Answered::These(0..1));
        assert_eq!(inbox.answered(&other, STREAM), Answered::These(1..2));
    }

    #[test]
    fn what_several_streams_store_goes_alone() {
        let mut inbox = inbox();
        let subject = inbox.lend(0);
        inbox.lend(1);
        assert_eq!(inbox.answered(&subject, STREAM), Answered::Some);
        assert_eq!(inbox.answered(&subject, Some(b"OTHER")), Answered::Unclear);
        inbox.forget();
        assert_ne!(inbox.lend(100), inbox.lend(101));
    }

    proptest! {
        /// With a server that leaves messages unanswered and answers others in whatever order: a message counts as stored
        /// only when it is, and all are that were answered, but for those in a run with one that was not. There are no
        /// more subjects than were in use at once.
        #[test]
        fn only_what_is_stored_counts_as_stored(steps in prop::collection::vec((0..10_u8, 0..100_usize), 1..300)) {
            let mut inbox = inbox();
            let (mut on_way, mut stored, mut ended) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let (mut next, mut most, mut lost) = (0, 0, 0);
            for (step, at) in steps {
                match step {
                    0..5 => {
                        on_way.push((inbox.lend(next), next));
                        next += 1;
                        let in_use: BTreeSet<&str> = on_way.iter().map(|(subject, _)| subject.as_str()).collect();
                        most = most.max(in_use.len() + lost);
                    }
                    5 => inbox.end_run(),
                    6 if at == 0 && !on_way.is_empty() => {
                        // Never answered; its subject stays in use.
                        let (subject, _) = on_way.swap_remove(0);
                        on_way.retain(|(other, number)| *other != subject || !stored.insert(*number));
                        lost += 1;
                    }
                    _ if !on_way.is_empty() => {
                        let (subject, number) = on_way.swap_remove(at % on_way.len());
                        stored.insert(number);
                        match inbox.answered(&subject, STREAM) {
                            Answered::These(numbers) => {
                                for number in numbers {
                                    prop_assert!(stored.contains(&number) && ended.insert(number), "{}", number);
                                }
                            }
                            answered => prop_assert_eq!(answered, Answered::Some),
                        }
                    }
                    _ => {}
                }
            }
            prop_assert!(inbox.subjects.len() <= most, "{} subjects for {}", inbox.subjects.len(), most);
        }
    }
}
