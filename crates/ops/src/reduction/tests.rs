use proptest::prelude::*;

use super::*;

const BEST: Request<'static> = Request { penalties: None, wish: Wish::Best };

fn reduced(logits: &[f32], request: &Request<'_>) -> Reduced {
    let mut reduced = Reduced::default();
    reduce(logits, request, &mut reduced);
    reduced
}

/// The tokens that draws end in, from the beginning to the end of [0, 1).
fn drawn(logits: &[f32], cuts: Cuts) -> Vec<u32> {
    let mut tokens: Vec<u32> = Vec::new();
    for step in 0..1000 {
        let wish = Wish::DrawFromBest(Cuts { uniform: f64::from(step) / 1000.0, ..cuts });
        let token = reduced(logits, &Request { penalties: None, wish }).chosen.expect("enough").token();
        if tokens.last() != Some(&token) {
            tokens.push(token);
        }
    }
    tokens
}

const ALL: Cuts =
    Cuts { count: 9, temperature: 1.0, top_p: 1.0, whole: Whole::Ranked, min_p: 0.0, uniform: 0.0 };

#[test]
fn a_row_is_its_largest_its_sum_and_a_token() {
    let row = reduced(&[0.0, 2.0, -1.0, 2.0, -200.0], &BEST);
    assert_eq!((row.not_finite, row.largest, row.chosen), (0, 2.0, Some(RankKey::new(2.0, 1))));
    let expected = 2.0 + (-2.0_f64).exp() + (-3.0_f64).exp();
    assert!((row.sum - expected).abs() < 1e-6, "{} {expected}", row.sum);
}

#[test]
fn what_is_not_finite_is_counted_and_nothing_else() {
    for (logits, count) in [
        (vec![f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY], 3),
        (vec![f32::NEG_INFINITY; 17], 17),
        (vec![f32::INFINITY], 1),
    ] {
        let row = reduced(&logits, &BEST);
        assert_eq!((row.not_finite, row.chosen), (count, None), "{logits:?}");
    }
    // Minus infinity beside numbers is a token that never comes.
    let logits = [f32::NEG_INFINITY, 1.0, 0.5];
    assert_eq!(reduced(&logits, &BEST).not_finite, 1);
    assert_eq!(drawn(&logits, ALL), [1, 2]);
}

#[test]
fn draws_go_by_rank_through_what_is_left() {
    // Weights of 1, twice 1/2, 1/4 and 1/8.
    let logits = [-3.0, -1.0, 0.0, -2.0, -1.0].map(|power: f32| power * std::f32::consts::LN_2);
    assert_eq!(drawn(&logits, ALL), [2, 1, 4, 3, 0]);
    assert_eq!(drawn(&logits, Cuts { count: 3, ..ALL }), [2, 1, 4]);
    assert_eq!(drawn(&logits, Cuts { min_p: 0.2, ..ALL }), [2, 1, 4, 3]);
    assert_eq!(drawn(&logits, Cuts { top_p: 0.6, ..ALL }), [2, 1]);
    // Three quarters of what is ranked are fewer than three quarters of all.
    assert_eq!(drawn(&logits, Cuts { count: 3, top_p: 0.74, ..ALL }), [2, 1]);
    assert_eq!(drawn(&logits, Cuts { count: 3, top_p: 0.74, whole: Whole::All, ..ALL }), [2, 1, 4]);
    assert_eq!(drawn(&logits, Cuts { top_p: 0.0, ..ALL }), [2]);
}

#[test]
fn a_nucleus_beyond_what_is_ranked_gives_no_token() {
    let logits = [1.0; 8];
    let nucleus = |count| {
        let wish = Wish::DrawFromBest(Cuts { count, top_p: 0.5, whole: Whole::All, uniform: 0.99, ..ALL });
        reduced(&logits, &Request { penalties: None, wish }).chosen.map(RankKey::token)
    };
    assert_eq!([3, 4, 8, 9].map(nucleus), [None, Some(3), Some(3), Some(3)]);
}

#[test]
fn penalties_leave_largest_and_sum_alone() {
    let logits = [4.0, 3.0, 1.0, -2.0];
    let seen = [Seen { token: 0, generated: 2 }, Seen { token: 3, generated: 0 }];
    let penalties = Penalties { repetition: 2.0, frequency: 0.25, presence: 0.5, seen: &seen };
    let row = reduced(&logits, &Request { penalties: Some(penalties), wish: Wish::Best });
    let plain = reduced(&logits, &BEST);
    assert_eq!((row.largest, row.sum), (plain.largest, plain.sum));
    assert_eq!(row.unpenalised, [4.0, -2.0]);
    assert_eq!(row.chosen, Some(RankKey::new(3.0, 1)));
    let last = Wish::DrawFromBest(Cuts { uniform: 0.9999, ..ALL });
    let row = reduced(&logits, &Request { penalties: Some(penalties), wish: last });
    assert_eq!(row.chosen, Some(RankKey::new(-4.0, 3)));
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
        let token = row.chosen.expect("a token").token() as usize;
        prop_assert_eq!(row.chosen, Some(RankKey::new(logits[token], token as u32)));
        let before: f64 = weights[..token].iter().sum();
        let slack = 1e-12 * total;
        prop_assert!(weights[token] > 0.0);
        prop_assert!(before - slack <= uniform * total && uniform * total <= before + weights[token] + slack);
    }
}
