//! The checker of the delivery tests, itself checked: it must find what it is there to find.

use checker::{Seen, compare};

#[path = "support/checker.rs"]
mod checker;

fn events(list: &[(char, u32)]) -> Vec<Seen<char, u32>> {
    list.iter().map(|&(key, id)| Seen { key, id }).collect()
}

fn input() -> Vec<Seen<char, u32>> {
    events(&[('a', 1), ('b', 2), ('a', 3), ('b', 4)])
}

#[test]
fn all_once_in_order_is_exactly_once() {
    let report = compare(&input(), &[input()]);
    assert_eq!(report.exactly_once(), Ok(()));
    assert_eq!((report.sent, report.received, report.too_many()), (4, 4, 0));
}

#[test]
fn keys_may_pass_each_other_and_places_have_no_order_among_them() {
    assert_eq!(compare(&input(), &[events(&[('b', 2), ('b', 4), ('a', 1), ('a', 3)])]).exactly_once(), Ok(()));
    assert_eq!(
        compare(&input(), &[events(&[('a', 3)]), events(&[('b', 2), ('b', 4), ('a', 1)])]).exactly_once(),
        Ok(())
    );
}

#[test]
fn a_missing_event_is_lost() {
    let report = compare(&input(), &[events(&[('a', 1), ('b', 2), ('b', 4)])]);
    assert_eq!(report.lost, [3]);
    assert!(report.at_least_once().is_err_and(|text| text.contains("lost 1 [3]")));
}

#[test]
fn a_repetition_is_doubled_and_not_reordered() {
    let report = compare(&input(), &[events(&[('a', 1), ('a', 3), ('a', 1), ('a', 3), ('a', 3), ('b', 2), ('b', 4)])]);
    assert_eq!(report.doubled, [(1, 1), (3, 2)]);
    assert_eq!(report.too_many(), 3);
    assert_eq!(report.at_least_once(), Ok(()));
    assert!(report.exactly_once().is_err());
}

#[test]
fn a_doubled_event_does_not_hide_a_lost_one() {
    let report = compare(&input(), &[events(&[('a', 1), ('a', 1), ('b', 2), ('b', 4)])]);
    assert_eq!(report.received, report.sent);
    assert_eq!(report.lost, [3]);
}

#[test]
fn a_later_event_of_the_key_first_is_reordered() {
    let report = compare(&input(), &[events(&[('a', 3), ('a', 1), ('b', 2), ('b', 4)])]);
    assert_eq!(report.reordered, [1]);
    assert!(report.at_least_once().is_err());
}

#[test]
fn an_event_that_never_went_in_is_unseen_and_so_is_one_whose_key_changed() {
    let mut output = input();
    output.push(Seen { key: 'a', id: 9 });
    assert_eq!(compare(&input(), &[output]).unseen, [9]);
    let report = compare(&input(), &[events(&[('a', 1), ('b', 2), ('a', 3), ('a', 4)])]);
    assert_eq!((report.unseen, report.lost), (vec![4], vec![4]));
}
