//! Every op, by one table of cases: central differences in f64, f32 and bf16 against f64, and goldens from PyTorch.

mod adapter_cases;
mod adapters;
mod cases;
mod cuda;
mod goldens;
mod harness;
mod properties;

use harness::{check_central_differences, check_precision, check_threads};

#[test]
fn gradients_equal_central_differences_in_f64() {
    cases::all().iter().for_each(check_central_differences);
}

#[test]
fn f32_and_bf16_equal_f64_to_their_precision() {
    cases::all().iter().chain(&adapter_cases::with_present_norms()).for_each(check_precision);
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    cases::all().iter().chain(&adapter_cases::with_present_norms()).for_each(check_threads);
}
