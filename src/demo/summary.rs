//! The counts at the end, and whether they add up.

use crate::demo::meter::Flow;
use crate::demo::view::thousands;

/// What is said at the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// The counts, a line each.
    pub lines: Vec<String>,
    /// The sums that are wrong, in words; empty when all is well.
    pub wrong: Vec<String>,
}

impl Summary {
    /// The summary of a flow that has ended.
    pub fn of(flow: &Flow) -> Self {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        let generated = flow.generated.get();
        let mut expect = |what: String, left: u64, right: u64| {
            if left != right {
                wrong.push(format!("{what}: {} against {}", thousands(left), thousands(right)));
            }
        };
        let ended: u64 = flow.ends.iter().map(|end| flow.published_to(&end.topic)).sum();
        let let_go: u64 = flow.hops.iter().map(|hop| hop.metrics.dropped.get() + hop.metrics.discarded.get()).sum();
        let mut parts: Vec<String> =
            flow.ends.iter().map(|end| (end, flow.published_to(&end.topic))).map(part).collect();
        if let_go > 0 {
            parts.push(format!("{} dropped", thousands(let_go)));
        }
        lines.push(format!("{} {} = {}", thousands(generated), flow.entry, parts.join(" + ")));
        expect(format!("{} sent, against where they ended", flow.entry), generated, ended + let_go);
        for hop in &flow.hops {
            let metrics = &hop.metrics;
            let received = metrics.received.get();
            lines.push(format!(
                "{}: {} received = {} processed + {} dropped + {} dead-lettered + {} discarded",
                hop.name,
                thousands(received),
                thousands(metrics.processed.get()),
                thousands(metrics.dropped.get()),
                thousands(metrics.dead_lettered.get()),
                thousands(metrics.discarded.get()),
            ));
            expect(format!("{}: received, against what became of it", hop.name), received, metrics.ended());
            let published = flow.published_for(hop);
            expect(format!("{}: published for it, against received", hop.name), published, received);
        }
        let seen: u64 = flow.ends.iter().map(|end| end.seen.get()).sum();
        lines.push(format!("read back from the final topics: {}", thousands(seen)));
        for end in &flow.ends {
            let published = flow.published_to(&end.topic);
            expect(format!("{}: published, against read back", end.topic), published, end.seen.get());
        }
        Self { lines, wrong }
    }

    /// The whole text.
    pub fn render(&self) -> String {
        let mut text = self.lines.join("\n");
        if self.wrong.is_empty() {
            text.push_str("\nthe counts add up\n");
        } else {
            text.push_str("\nthe counts do NOT add up:\n");
            for wrong in &self.wrong {
                text.push_str(&format!("  {wrong}\n"));
            }
        }
        text
    }
}

fn part((end, published): (&crate::demo::meter::End, u64)) -> String {
    format!("{} {}", thousands(published), end.topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::meter::tests::{complete, flow};

    #[test]
    fn what_adds_up_is_said() {
        let flow = flow();
        complete(&flow);
        let text = Summary::of(&flow).render();
        let expected = "\
100 orders = 90 notifications + 0 orders.notification.dead + 2 orders.payment.dead + 8 payment-reviews
payment: 100 received = 98 processed + 0 dropped + 2 dead-lettered + 0 discarded
notification: 90 received = 90 processed + 0 dropped + 0 dead-lettered + 0 discarded
read back from the final topics: 100
the counts add up
";
        assert_eq!(text, expected);
    }

    #[test]
    fn each_sum_that_is_wrong_is_named() {
        type Spoil = fn(&Flow);
        let cases: [(&str, Spoil); 4] = [
            ("orders sent, against where they ended: 101 against 100", |flow| flow.generated.add(1)),
            ("payment: received, against what became of it: 101 against 100", |flow| {
                flow.hops[0].metrics.received.add(1);
            }),
            ("notification: published for it, against received: 91 against 90", |flow| {
                flow.hops[0].metrics.published[0].add(1);
            }),
            ("payment-reviews: published, against read back: 8 against 9", |flow| flow.ends[3].seen.add(1)),
        ];
        for (expected, spoil) in cases {
            let flow = flow();
            complete(&flow);
            spoil(&flow);
            let summary = Summary::of(&flow);
            assert!(summary.wrong.iter().any(|wrong| wrong == expected), "{expected}: {:?}", summary.wrong);
            assert!(summary.render().contains("do NOT add up"));
        }
    }
}
