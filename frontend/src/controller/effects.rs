//! The log pages of commands and features that are supported, and of their effects (Base 2.1, 5.1.12.1.6 and .18).

use nvme_proto::feature::FeatureId;
use nvme_proto::log::{CommandEffects, CommandsEffects, FeatureEffects};
use nvme_proto::opcode::{AdminOpcode, NvmOpcode};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::Controller;
use super::features::is_of_namespaces;
use super::identify::abilities;

/// Scopes of commands and features, as CSP and FSP tell them.
const NAMESPACE: u16 = 1 << 0;
const CONTROLLER: u16 = 1 << 1;

impl Controller {
    /// The page of commands.
    pub(super) fn command_effects(&self) -> CommandsEffects {
        let mut page = CommandsEffects::new_zeroed();
        let supported = CommandEffects::new().with_csupp(true);
        let of_controller = supported.with_csp(CONTROLLER);
        for opcode in [
            AdminOpcode::GetLogPage,
            AdminOpcode::Identify,
            AdminOpcode::Abort,
            AdminOpcode::SetFeatures,
            AdminOpcode::GetFeatures,
            AdminOpcode::AsyncEventRequest,
            AdminOpcode::KeepAlive,
        ] {
            page.acs[usize::from(opcode.0)] = of_controller;
        }
        let of_pcie = [
            AdminOpcode::DeleteIoSq,
            AdminOpcode::CreateIoSq,
            AdminOpcode::DeleteIoCq,
            AdminOpcode::CreateIoCq,
            AdminOpcode::DoorbellBufferConfig,
        ];
        for opcode in of_pcie.into_iter().filter(|_| !self.config.fabrics) {
            page.acs[usize::from(opcode.0)] = of_controller;
        }
        let able = abilities();
        let of_namespace = supported.with_csp(NAMESPACE);
        for (opcode, supported, writes) in [
            (NvmOpcode::Flush, true, false),
            (NvmOpcode::Read, true, false),
            (NvmOpcode::Write, true, true),
            (NvmOpcode::Compare, able.nvmcmps(), false),
            (NvmOpcode::WriteZeroes, able.nvmwzsv(), true),
            (NvmOpcode::DatasetManagement, able.nvmdsmsv(), true),
            (NvmOpcode::Verify, able.nvmvfys(), false),
            (NvmOpcode::ReservationRegister, able.reservs(), false),
            (NvmOpcode::ReservationReport, able.reservs(), false),
            (NvmOpcode::ReservationAcquire, able.reservs(), false),
            (NvmOpcode::ReservationRelease, able.reservs(), false),
        ] {
            if supported {
                page.iocs[usize::from(opcode.0)] = of_namespace.with_lbcc(writes);
            }
        }
        page
    }

    /// The page of features.
    pub(super) fn feature_effects(&self) -> Vec<u8> {
        let of = |fid: u8| {
            let fid = FeatureId(fid);
            if !self.has_feature(fid) {
                return FeatureEffects::new();
            }
            let scope = if is_of_namespaces(fid) { NAMESPACE } else { CONTROLLER };
            FeatureEffects::new().with_fsupp(true).with_fsp(scope)
        };
        (0..=u8::MAX).flat_map(|fid| of(fid).as_bytes().to_vec()).collect()
    }
}
