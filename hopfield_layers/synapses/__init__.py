"""The synapses."""

from .attention import (
    AttentionSynapse as AttentionSynapse,
    SelfAttentionSynapse as SelfAttentionSynapse,
)
from .base import AbstractSynapse as AbstractSynapse, as_synapse as as_synapse
from .convolution import ConvSynapse as ConvSynapse
from .dense import BiasSynapse as BiasSynapse, DenseSynapse as DenseSynapse
from .hidden import (
    HiddenSynapse as HiddenSynapse,
    HiddenTensorSynapse as HiddenTensorSynapse,
    MixerSynapse as MixerSynapse,
)
