"""What people call the ways of answering."""

from collections.abc import Mapping

from data_contracts.enums import Method

METHOD_NAMES: Mapping[Method, str] = {
    Method.BASE: "Base model",
    Method.RANDOM_CROP: "Random crop",
    Method.RAW_ATTENTION: "Raw attention",
    Method.VICROP: "ViCrop",
    Method.VICROP_GRAD: "ViCrop, grad-att",
    Method.VICROP_PURE_GRAD: "ViCrop, pure-grad",
    Method.VICROP_HIGH: "ViCrop, high-res",
    Method.VICROP_GRAD_HIGH: "ViCrop, grad-att, high-res",
    Method.VICROP_PURE_GRAD_HIGH: "ViCrop, pure-grad, high-res",
    Method.SDRPN: "SD-RPN",
    Method.SDRPN_WITHDRAWN: "SD-RPN, image withdrawn",
    Method.ORACLE: "True box (oracle)",
}
