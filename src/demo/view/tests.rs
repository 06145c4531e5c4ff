use super::*;

fn topic(name: &str, rate: f64, total: u64) -> TopicFrame {
    TopicFrame { topic: name.into(), rate, total, dead_letter: name.ends_with(".dead") }
}

fn frame() -> Frame {
    let millis = |millis| Some(Duration::from_micros(millis));
    Frame {
        phase: Phase::Running,
        address: "127.0.0.1:40001".into(),
        running: Duration::from_millis(12_900),
        entry: topic("orders", 1_000.2, 12_345),
        hops: vec![
            HopFrame {
                name: "payment".into(),
                inputs: "orders".into(),
                rate: 998.0,
                total: 12_300,
                p50: millis(870),
                p99: millis(8_200),
                backlog: 45,
                outputs: vec![
                    topic("payments", 975.0, 11_992),
                    topic("payment-reviews", 20.0, 246),
                    topic("orders.payment.dead", 5.0, 62),
                ],
            },
            HopFrame {
                name: "notification".into(),
                inputs: "payments".into(),
                rate: 0.0,
                total: 0,
                p50: None,
                p99: Some(Duration::from_secs(1)),
                backlog: 4_321,
                outputs: vec![topic("notifications", 0.0, 0), topic("orders.notification.dead", 0.0, 0)],
            },
        ],
        events: vec![
            EventLine { topic: "payment-reviews".into(), text: "c-0007  {\"order_id\":\"o-0000001\"}".into() },
            EventLine {
                topic: "notifications".into(),
                text: format!("c-0012  {{\"to\":\"c-0012\",\"text\":\"\x1b[2J{}\"}}", "thank you ".repeat(20)),
            },
        ],
    }
}

fn text(frame: &Frame, width: usize) -> String {
    frame.picture(width).iter().fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn at_60_columns_the_median_is_left_out() {
    let expected = r#"fluxmill demo  12 s  Ctrl-C ends it with a summary
look in: kcat -b 127.0.0.1:40001 -L

                       events/s     events      p99  backlog
orders                    1,000     12,345
orders > payment            998     12,300   8.2 ms       45
  > payments                975     11,992
  > payment-reviews          20        246
  x orders.payment.d…         5         62
payments > notificat…         0          0    1.0 s    4,321
  > notifications             0          0
  x orders.notificat…         0          0

payment-reviews  c-0007  {"order_id":"o-0000001"}
notifications  c-0012  {"to":"c-0012","text":".[2Jthank you…
"#;
    assert_eq!(text(&frame(), 60), expected);
}

#[test]
fn at_80_columns_everything_is_there() {
    let expected = r#"fluxmill demo  12 s  Ctrl-C ends it with a summary
look in: kcat -b 127.0.0.1:40001 -L

                                  events/s     events      p50      p99  backlog
orders                               1,000     12,345
orders > payment                       998     12,300   870 us   8.2 ms       45
  > payments                           975     11,992
  > payment-reviews                     20        246
  x orders.payment.dead                  5         62
payments > notification                  0          0        -    1.0 s    4,321
  > notifications                        0          0
  x orders.notification.dead             0          0

payment-reviews  c-0007  {"order_id":"o-0000001"}
notifications  c-0012  {"to":"c-0012","text":".[2Jthank you thank you thank you…
"#;
    assert_eq!(text(&frame(), 80), expected);
}

#[test]
fn at_120_columns_numbers_stay_near_their_names() {
    let expected = r#"fluxmill demo  12 s  Ctrl-C ends it with a summary
look in: kcat -b 127.0.0.1:40001 -L

                                                 events/s     events      p50      p99  backlog
orders                                              1,000     12,345
orders > payment                                      998     12,300   870 us   8.2 ms       45
  > payments                                          975     11,992
  > payment-reviews                                    20        246
  x orders.payment.dead                                 5         62
payments > notification                                 0          0        -    1.0 s    4,321
  > notifications                                       0          0
  x orders.notification.dead                            0          0

payment-reviews  c-0007  {"order_id":"o-0000001"}
notifications  c-0012  {"to":"c-0012","text":".[2Jthank you thank you thank you thank you thank you thank you thank you…
"#;
    assert_eq!(text(&frame(), 120), expected);
    assert_eq!(text(&frame(), 500), expected);
}

#[test]
fn a_line_for_a_log() {
    let expected = "12 s  orders 1,000/s, 12,345 in all | \
        payment 998/s p50 870 us p99 8.2 ms backlog 45, 11,992 payments, 246 payment-reviews, 62 orders.payment.dead | \
        notification 0/s p50 - p99 1.0 s backlog 4,321, 0 notifications, 0 orders.notification.dead";
    assert_eq!(frame().line(), expected);
}

#[test]
fn no_line_is_wider_than_it_may_be() {
    for width in WIDTH_MIN..=200 {
        for line in frame().picture(width) {
            assert!(line.chars().count() <= width.min(WIDTH_MAX), "{width}: {line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

#[test]
fn numbers_and_durations_are_short() {
    let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")];
    for (number, expected) in cases {
        assert_eq!(thousands(number), expected);
    }
    let cases = [
        (999, "999 us"),
        (1_000, "1.0 ms"),
        (9_949, "9.9 ms"),
        (9_950, "10 ms"),
        (999_499, "999 ms"),
        (999_500, "1.0 s"),
    ];
    for (micros, expected) in cases {
        assert_eq!(latency(Some(Duration::from_micros(micros))), expected);
    }
    assert_eq!(latency(None), "-");
}
