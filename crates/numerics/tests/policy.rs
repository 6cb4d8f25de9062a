//! The text and table forms of a policy.

use mantissa_numerics::{Field, Format, PolicyError, PrecisionPolicy, Preset};
use proptest::{prelude::*, sample::select};

fn any_policy() -> impl Strategy<Value = PrecisionPolicy> {
    let formats: Vec<_> = Field::ALL.iter().map(|field| select(field.allowed())).collect();
    formats.prop_map(|formats| {
        Field::ALL
            .into_iter()
            .zip(formats)
            .try_fold(PrecisionPolicy::default(), |policy, (field, format)| policy.with(field, format))
            .expect("only allowed values were drawn")
    })
}

fn refusal(text: &str) -> String {
    text.parse::<PrecisionPolicy>().expect_err("must be refused").to_string()
}

#[test]
fn presets_are_those_of_the_documentation() {
    use Format::{Bf16, F8E4M3, F16, F32};
    let rows = [
        (Preset::F32, [F32, F32, F32, F32, F32]),
        (Preset::F16, [F16, F16, F32, F16, F16]),
        (Preset::Bf16, [Bf16, Bf16, F32, F16, Bf16]),
        (Preset::MemoryEfficient, [F16, F16, F32, F16, F8E4M3]),
        (Preset::HighPrecision, [Bf16, Bf16, F32, F32, Bf16]),
    ];
    assert_eq!(rows.map(|(preset, _)| preset), Preset::ALL);
    for (preset, formats) in rows {
        let policy = preset.policy();
        assert_eq!(Field::ALL.map(|field| policy.get(field)), formats);
        assert_eq!(policy.to_string(), preset.name());
        assert_eq!(preset.name().parse(), Ok(policy));
        assert_eq!(policy.preset(), Some(preset));
        assert!(!preset.description().is_empty());
    }
    assert_eq!(PrecisionPolicy::default(), Preset::Bf16.policy());
}

#[test]
fn overrides_print_in_the_shortest_form() {
    let shortest = |text: &str| text.parse::<PrecisionPolicy>().expect("a policy").to_string();
    assert_eq!(shortest(" bf16 , kv_cache = f8e4m3 "), "bf16,kv_cache=f8e4m3");
    assert_eq!(shortest("kv_cache=f16"), "bf16,kv_cache=f16");
    assert_eq!(shortest("f16,kv_cache=f8e4m3"), "memory-efficient");
    assert_eq!(shortest("bf16,scales=f32"), "high-precision");
    assert_eq!(shortest("bf16,accumulation=f32"), "bf16");
    assert_eq!(shortest("memory-efficient,weights=f16,kv_cache=f16"), "f16");
}

#[test]
fn wrong_texts_name_field_value_and_what_is_allowed() {
    assert_eq!(refusal("bf16,kv_cache=int8"), "kv_cache cannot be \"int8\"; allowed: f32, f16, bf16, f8e4m3");
    assert_eq!(refusal("accumulation=f16"), "accumulation cannot be \"f16\"; allowed: f32");
    assert_eq!(refusal("scales=bf16"), "scales cannot be \"bf16\"; allowed: f16, f32");
    assert_eq!(
        refusal("bf16,cache=f16"),
        "a policy has no field \"cache\"; the fields are weights, activations, accumulation, scales, kv_cache"
    );
    assert_eq!(
        refusal("fast"),
        "\"fast\" is no policy preset; the presets are f32, f16, bf16, memory-efficient, high-precision, and \
         overrides are written field=format"
    );
    assert_eq!(refusal("weights=f16,bf16"), "preset \"bf16\" must stand first in a policy");
    assert_eq!(refusal("weights=f16,weights=f16"), "weights is given twice in a policy");
    for empty in ["", "  ", "bf16,", ",bf16"] {
        assert_eq!(empty.parse::<PrecisionPolicy>(), Err(PolicyError::Empty));
    }
}

#[test]
fn set_refuses_and_leaves_the_policy_alone() {
    let mut policy = PrecisionPolicy::default();
    let error = policy.set(Field::Weights, Format::F8E4M3).expect_err("not a weight format");
    assert_eq!(error, PolicyError::NotAllowed { field: Field::Weights, value: "f8e4m3".into() });
    assert_eq!(policy, PrecisionPolicy::default());
}

#[test]
fn tables_are_read_in_any_order() {
    let read = |text| PrecisionPolicy::from_toml(text);
    assert_eq!(read("").expect("the default"), PrecisionPolicy::default());
    assert_eq!(read("scales = \"f32\"\npreset = \"f16\"").expect("a policy").to_string(), "f16,scales=f32");
    let nested: std::collections::BTreeMap<String, PrecisionPolicy> =
        toml::from_str("a = \"bf16,kv_cache=f8e4m3\"\n[b]\nkv_cache = \"f8e4m3\"").expect("two policies");
    assert_eq!(nested["a"], nested["b"]);
}

#[test]
fn wrong_tables_name_field_value_and_what_is_allowed() {
    let refusal = |text| PrecisionPolicy::from_toml(text).expect_err("must be refused").to_string();
    for (text, part) in [
        ("kv_cache = \"fp8\"", "kv_cache cannot be \"fp8\"; allowed: f32, f16, bf16, f8e4m3"),
        ("weights = 16", "weights cannot be \"16\"; allowed: f32, f16, bf16"),
        ("cache = \"f16\"", "a policy has no field \"cache\""),
        ("preset = \"fast\"", "\"fast\" is no policy preset"),
        ("weights = [\"f16\"]", "the name of a format or preset"),
        ("weights = \"f16\"\nweights = \"f16\"", "duplicate key"),
    ] {
        let message = refusal(text);
        assert!(message.contains(part), "{message}");
    }
}

proptest! {
    #[test]
    fn every_policy_survives_text_and_tables(policy in any_policy()) {
        prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        let table = toml::to_string(&policy).expect("a table");
        prop_assert_eq!(PrecisionPolicy::from_toml(&table), Ok(policy));
        let json = serde_json::to_string(&policy).expect("an object");
        prop_assert_eq!(serde_json::from_str::<PrecisionPolicy>(&json).expect("a policy"), policy);
    }

    #[test]
    fn white_space_does_not_matter(policy in any_policy(), pad in "[ \t]{0,3}") {
        let spaced = policy.to_string().replace(',', &format!("{pad},{pad}")).replace('=', &format!("{pad}={pad}"));
        prop_assert_eq!(format!("{pad}{spaced}{pad}").parse(), Ok(policy));
    }

    #[test]
    fn arbitrary_text_is_read_or_refused(text in "[a-z0-9_=, -]{0,40}") {
        if let Ok(policy) = text.parse::<PrecisionPolicy>() {
            prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }
}
