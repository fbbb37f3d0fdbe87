//! How near a result must be to its golden value: the one table, relative to the largest absolute value of the golden tensor.

use ml::Kind;

/// f64 against f64: sums in another order.
pub const F64: f64 = 1e-9;
/// f32 against f64.
pub const F32: f64 = 1e-5;
/// bf16 against f64 on the same rounded inputs or weights: two roundings of 2⁻⁸ at the largest value.
pub const BF16: f64 = 1.6e-2;

/// The tolerance of a number type.
pub fn of(kind: Kind) -> f64 {
    match kind {
        Kind::Double => F64,
        Kind::Float => F32,
        Kind::BFloat16 => BF16,
        other => panic!("there is no tolerance for {other:?}"),
    }
}

/// Weights after some steps of Adam in f32. Adam divides a gradient by its size, so rounding shows where gradients are tiny; the
/// golden file says how far the reference's own f32 run is from its f64 run, and ours may be twice as far.
pub fn after_adam(reference: f64) -> f64 {
    assert!(reference > 0.0 && reference < 2e-4);
    2.0 * reference
}
