"""Operations of the hot path; installed as ``polylight.kernels``."""

from polylight.kernels.philox import philox_normal, philox_uniform, stream_key

__all__ = ["philox_normal", "philox_uniform", "stream_key"]
