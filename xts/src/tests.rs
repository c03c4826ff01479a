use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use proptest::prelude::*;

use super::*;

/// IEEE Std 1619-2018, annex B, vector 4: XTS-AES-128, the bytes 0..=255 twice as data unit 0.
const VECTOR_4: &str = "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f560000\
    05279fa5d8b5e4ad40e736ddb4d35412328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce\
    93fdf166a24912b422976146ae20ce846bb7dc9ba94a767aaef20c0d61ad02655ea92dc4c4e41a8952c651d33174be51\
    a10c421110e6d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172af82b604dc4b8e51bcb08235a6f434\
    1332e4ca60482a4ba1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb7ec3\
    0bf12b1fa35b913f9f747a8afd1b130e94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc\
    1e08298516e2c9ed03ff3c1b7860f6de76d4cecd94c8119855ef5297ca67e9f3e7ff72b1e99785ca0a7e7720c5b36dc6\
    d72cac9574c8cbbc2f801e23e56fd344b07f22154beba0f08ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd\
    74d20cc39881c213ee770b1010e4bea718846977ae119f7a023ab58cca0ad752afe656bb3c17256a9f6e9bf19fdd5a38\
    fc82bbe872c5539edb609ef4f79c203ebb140f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18d\
    eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568";

/// IEEE Std 1619-2018, annex B, vector 10: XTS-AES-256, the bytes 0..=255 twice as data unit 0xff.
const VECTOR_10: &str = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44\
    680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0\
    c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d\
    e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f\
    93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6\
    dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1\
    505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b\
    11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac\
    6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493\
    c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa\
    773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn shared(bytes: &[u8]) -> Vec<AtomicU8> {
    bytes.iter().copied().map(AtomicU8::new).collect()
}

fn unshared(bytes: &[AtomicU8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte.load(Relaxed)).collect()
}

#[test]
fn known_answers() {
    let (e, pi) = (
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592",
    );
    let count: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let fours = vec![0x44; 32];
    for (key, lba, plain, cipher) in [
        // Vectors 2 and 3 are the short ones whose halves differ.
        (
            "11".repeat(16) + &"22".repeat(16),
            0x33_3333_3333,
            &fours,
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0".to_owned() + &"22".repeat(16),
            0x33_3333_3333,
            &fours,
            "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        ),
        (e[..32].to_owned() + &pi[..32], 0, &count, VECTOR_4),
        (e.to_owned() + pi, 0xff, &count, VECTOR_10),
    ] {
        for xts in Xts::engines(&hex(&key)).unwrap() {
            let unit = plain.len();
            let mut buf = vec![0; unit];
            xts.encrypt(unit, lba, &shared(plain), &mut buf);
            assert_eq!(buf, hex(cipher), "{xts:?}");
            let back = shared(&vec![0; unit]);
            xts.decrypt(unit, lba, &buf, &back);
            assert_eq!(&unshared(&back), plain, "{xts:?}");
            xts.decrypt_in_place(unit, lba, &mut buf);
            assert_eq!(&buf, plain, "{xts:?}");
            xts.encrypt_in_place(unit, lba, &mut buf);
            assert_eq!(buf, hex(cipher), "{xts:?}");
        }
    }
}

#[test]
fn keys_that_are_refused() {
    for length in [0, 16, 31, 33, 48, 63, 65, 128] {
        assert_eq!(Xts::new(&vec![1; length]).unwrap_err(), KeyError::Length(length));
    }
    for length in [32, 64] {
        let mut key = vec![7; length];
        assert_eq!(Xts::new(&key).unwrap_err(), KeyError::EqualHalves);
        key[length - 1] = 8;
        assert!(Xts::new(&key).is_ok());
    }
}

#[test]
fn debug_shows_no_key() {
    let key: Vec<u8> = (100..164).collect();
    let shown = format!("{:?}", Xts::new(&key).unwrap());
    let of = |engine| format!("Xts {{ engine: \"{engine}\", .. }}");
    assert!(["vaes-512", "vaes-256", "portable"].map(of).contains(&shown), "{shown}");
}

#[test]
fn a_run_is_its_units_one_by_one() {
    for key in [32, 64].map(|length| (0..length).collect::<Vec<u8>>()) {
        for xts in Xts::engines(&key).unwrap() {
            for unit in [16, 512, 528, 4096] {
                let plain: Vec<u8> = (0..unit * 11).map(|i| (i / 3) as u8).collect();
                let mut whole = plain.clone();
                let first = u64::MAX - 4;
                xts.encrypt_in_place(unit, first, &mut whole);
                for (i, one) in whole.chunks_mut(unit).enumerate() {
                    xts.decrypt_in_place(unit, first.wrapping_add(i as u64), one);
                }
                assert_eq!(whole, plain);
            }
        }
    }
}

#[test]
#[should_panic(expected = "whole data units")]
fn half_a_unit_is_refused() {
    Xts::new(&[&[1; 32][..], &[2; 32]].concat()).unwrap().encrypt_in_place(512, 0, &mut [0; 768]);
}

#[test]
#[should_panic(expected = "differ in length")]
fn a_short_destination_is_refused() {
    let key: Vec<u8> = (0..64).collect();
    Xts::new(&key).unwrap().decrypt(512, 0, &[0; 1024], &shared(&[0; 512]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn engines_agree(
        key in prop_oneof![prop::collection::vec(any::<u8>(), 32), prop::collection::vec(any::<u8>(), 64)],
        unit in prop_oneof![Just(512usize), Just(4096), (1usize..80).prop_map(|n| n * 16), (1usize..5).prop_map(|n| n * 512)],
        units in 0usize..10,
        first in any::<u64>(),
        seed in any::<u64>(),
        offset in 0usize..9,
    ) {
        let len = unit * units;
        let plain: Vec<u8> = (0..(len + offset) as u64)
            .map(|i| (seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
            .collect();
        let source = shared(&plain);
        let mut answers = Vec::new();
        for xts in Xts::engines(&key).unwrap() {
            let mut cipher = vec![0; len + offset];
            xts.encrypt(unit, first, &source[offset..], &mut cipher[offset..]);
            let mut in_place = plain.clone();
            xts.encrypt_in_place(unit, first, &mut in_place[offset..]);
            prop_assert_eq!(&cipher[offset..], &in_place[offset..]);

            let back = shared(&vec![0; len + offset]);
            xts.decrypt(unit, first, &cipher[offset..], &back[offset..]);
            prop_assert_eq!(&unshared(&back)[offset..], &plain[offset..]);
            xts.decrypt_in_place(unit, first, &mut in_place[offset..]);
            prop_assert_eq!(&in_place[offset..], &plain[offset..]);
            answers.push(cipher);
        }
        prop_assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
}
