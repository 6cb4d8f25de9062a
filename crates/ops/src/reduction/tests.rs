use proptest::prelude::*;

use super::*;

const NONE: Request<'static> = Request { penalties: None, wish: Wish::Best { count: 3 } };

fn reduced(logits: &[f32], request: &Request<'_>) -> Reduced {
    let mut reduced = Reduced::default();
    reduce(logits, request, &mut reduced);
    reduced
}

fn tokens(reduced: &Reduced) -> Vec<u32> {
    reduced.best.iter().map(|key| key.token()).collect()
}

#[test]
fn a_row_is_its_largest_its_sum_and_its_best() {
    let row = reduced(&[0.0, 2.0, -1.0, 2.0, -200.0], &NONE);
    assert_eq!((row.not_finite, row.largest), (0, 2.0));
    let expected = 2.0 + (-2.0_f64).exp() + (-3.0_f64).exp();
    assert!((row.sum - expected).abs() < 1e-6, "{} {expected}", row.sum);
    assert_eq!(tokens(&row), [1, 3, 0]);
}

#[test]
fn what_is_not_finite_is_counted_and_nothing_else() {
    for (logits, count) in [
        (vec![f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY], 3),
        (vec![f32::NEG_INFINITY; 17], 17),
        (vec![f32::INFINITY], 1),
    ] {
        let row = reduced(&logits, &NONE);
        assert_eq!((row.not_finite, row.best.len()), (count, 0), "{logits:?}");
    }
    // Minus infinity beside numbers is a token that never comes.
    let row = reduced(&[f32::NEG_INFINITY, 1.0, 0.5], &NONE);
    assert_eq!((row.not_finite, tokens(&row)), (1, vec![1, 2]));
}

#[test]
fn penalties_leave_largest_and_sum_alone() {
    let logits = [4.0, 3.0, 1.0, -2.0];
    let seen = [Seen { token: 0, generated: 2 }, Seen { token: 3, generated: 0 }];
    let penalties = Penalties { repetition: 2.0, frequency: 0.25, presence: 0.5, seen: &seen };
    let wish = Wish::Nucleus { count: 9, temperature: 1.0 };
    let row = reduced(&logits, &Request { penalties: Some(penalties), wish });
    let plain = reduced(&logits, &Request { penalties: None, wish });
    assert_eq!((row.largest, row.sum), (plain.largest, plain.sum));
    assert_eq!(row.unpenalised, [4.0, -2.0]);
    let expected = [(3.0, 1), (1.0, 0), (1.0, 2), (-4.0, 3)].map(|(logit, token)| RankKey::new(logit, token));
    assert_eq!(row.best, expected);
    let sum = 1.0 + 2.0 * (-2.0_f64).exp() + (-7.0_f64).exp();
    assert!((row.wished_sum - sum).abs() < 1e-6);
}

fn penalised(repetition: f32, frequency: f32, presence: f32, seen: &[Seen]) -> [f32; 6] {
    let mut logits = [2.0, -2.0, 4.0, -4.0, 0.0, f32::NEG_INFINITY];
    Penalties { repetition, frequency, presence, seen }.apply(&mut logits, &mut Vec::new());
    logits
}

#[test]
fn repetition_divides_positive_and_multiplies_negative_logits() {
    let seen = [0, 1, 3, 4, 5].map(|token| Seen { token, generated: token / 3 });
    assert_eq!(penalised(2.0, 0.0, 0.0, &seen), [1.0, -4.0, 4.0, -8.0, 0.0, f32::NEG_INFINITY]);
}

#[test]
fn presence_and_frequency_meet_generated_tokens_only() {
    let seen = [(0, 0), (1, 0), (2, 3), (3, 1), (5, 1)].map(|(token, generated)| Seen { token, generated });
    let expected = [2.0, -2.0, 4.0 - 0.75 - 0.5, -4.75, 0.0, f32::NEG_INFINITY];
    assert_eq!(penalised(1.0, 0.25, 0.5, &seen), expected);
}

#[test]
fn repetition_comes_first_of_all_three() {
    let seen = [(0, 0), (2, 2), (3, 1)].map(|(token, generated)| Seen { token, generated });
    // 4 / 2 + 2 * 0.5 - 1; -4 * 2 + 0.5 - 1; the prompt's 2 / 2 only.
    assert_eq!(penalised(2.0, -0.5, 1.0, &seen), [1.0, -2.0, 2.0, -8.5, 0.0, f32::NEG_INFINITY]);
}

#[test]
fn extreme_penalties_stay_finite() {
    assert_eq!(penalised(f32::MIN_POSITIVE, 0.0, 0.0, &[Seen { token: 2, generated: 0 }])[2], f32::MAX);
    assert_eq!(penalised(f32::MAX, 0.0, 0.0, &[Seen { token: 3, generated: 0 }])[3], f32::MIN);
}

#[test]
fn a_walk_skips_zeros_and_ends_at_the_last_weight() {
    let at = |target: f64| {
        let mut rest = target;
        (walk([0.0, 0.5, 0.0, 0.25, 0.0].into_iter(), &mut rest), rest)
    };
    assert_eq!(at(0.0), (1, 0.0));
    assert_eq!(at(0.5), (3, 0.0));
    assert_eq!(at(0.625), (3, 0.125));
    assert_eq!(at(0.75), (3, 0.0));
}

proptest! {
    #[test]
    fn a_draw_ends_where_the_sum_of_weights_reaches_it(
        logits in prop::collection::vec(-5.0f32..5.0, 1..2500),
        uniform in 0.0f64..1.0,
        floor in prop_oneof![Just(0.0f32), Just(0.01f32)],
    ) {
        let wish = Wish::Draw { temperature: 0.5, floor, uniform };
        let row = reduced(&logits, &Request { penalties: None, wish });
        let softmax = Softmax::new(row.largest, 0.5, floor);
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(softmax.weight(logit))).collect();
        let total: f64 = weights.iter().sum();
        let token = row.best[0].token() as usize;
        prop_assert_eq!(row.best[0].logit(), logits[token] + 0.0);
        let before: f64 = weights[..token].iter().sum();
        let slack = 1e-12 * total;
        prop_assert!(weights[token] > 0.0);
        prop_assert!(before - slack <= uniform * total && uniform * total <= before + weights[token] + slack);
    }
}
