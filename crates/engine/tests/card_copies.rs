//! What reaches a card: large copies by pieces, bytes of files, numbers drawn there, products outside the tape. Skipped, and says so,
//! where there is no card.

use loratune_engine::bench::{self, card};
use loratune_engine::{DType, Device, Tensor};

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn large_copies_arrive_whole_and_in_order() {
    let Some(device) = card() else { return };
    // Beyond all pieces, with an odd rest; and one that the driver copies.
    for n in [48_000_003, 20_000_000, 1001] {
        for dtype in [DType::F32, DType::BF16] {
            let there = bench::quick(n as u32, &[n], dtype, Device::Cpu).unwrap();
            let mut copies = [0, 1].map(|_| there.to_device(device).unwrap());
            // What is asked for after the copy finds all of it.
            copies[0].scale_assign(2.0);
            let mut twice = there.clone();
            twice.scale_assign(2.0);
            let [doubled, plain] = copies;
            assert!(bits(&doubled.to_device(Device::Cpu).unwrap()) == bits(&twice), "{n} {dtype}, doubled");
            assert!(bits(&plain.to_device(Device::Cpu).unwrap()) == bits(&there), "{n} {dtype}");
        }
    }
}

#[test]
fn bytes_of_a_file_become_a_tensor_if_all_are_finite() {
    let Some(Device::Cuda(ordinal)) = card() else { return };
    for (n, bad) in [(1usize, None), (9_000_001, None), (9_000_001, Some(8_999_999)), (9_000_001, Some(0))] {
        let mut numbers: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 3.0).collect();
        if let Some(bad) = bad {
            numbers[bad] = f32::INFINITY;
        }
        let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let bf16s: Vec<u8> = numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        for (dtype, bytes) in [(DType::F32, f32s), (DType::BF16, bf16s)] {
            let tensor = Tensor::from_bytes_on(ordinal, dtype, &[n], &bytes).unwrap();
            assert_eq!(tensor.is_none(), bad.is_some(), "{n} {dtype} {bad:?}");
            if let Some(tensor) = tensor {
                let expected = Tensor::from_vec(numbers.clone(), &[n]).unwrap().to_dtype(dtype);
                assert!(bits(&tensor) == bits(&expected), "{n} {dtype}");
            }
        }
    }
    assert!(Tensor::from_bytes_on(ordinal, DType::F32, &[3], &[0; 11]).is_err());
}

#[test]
fn numbers_drawn_on_a_card_are_the_host_s() {
    let Some(device) = card() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let [here, there] = [Device::Cpu, device].map(|d| bench::quick(77, &[1003, 37], dtype, d).unwrap());
        assert_eq!(there.device(), device);
        assert!(bits(&here) == bits(&there), "{dtype}");
    }
}

#[test]
fn products_outside_the_tape_are_the_host_s() {
    let Some(device) = card() else { return };
    let [a, b] = [[130, 71], [71, 24]].map(|shape| bench::quick(5, &shape, DType::F32, Device::Cpu).unwrap());
    let here = a.matmul(&b, 3.0).unwrap();
    let there = a.to_device(device).unwrap().matmul(&b.to_device(device).unwrap(), 3.0).unwrap();
    assert_eq!(there.device(), device);
    for (x, y) in here.to_f64_vec().iter().zip(there.to_f64_vec()) {
        assert!((x - y).abs() < 1e-5, "{x} {y}");
    }
    assert!(a.to_device(device).unwrap().matmul(&b, 1.0).is_err(), "on two devices");
    let turned = a.to_device(device).unwrap().transposed_matmul(&here.to_device(device).unwrap()).unwrap();
    assert_eq!(turned.shape(), [71, 24]);
    let (a, c, turned) = (a.to_f64_vec(), here.to_f64_vec(), turned.to_f64_vec());
    for i in 0..71 {
        for j in 0..24 {
            let sum: f64 = (0..130).map(|k| a[k * 71 + i] * c[k * 24 + j]).sum();
            assert!((sum - turned[i * 24 + j]).abs() < 1e-5, "{i} {j}: {sum} {}", turned[i * 24 + j]);
        }
    }
}
