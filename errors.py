"""Every error that hopformer raises for something a user, a file or a peer did.

    HopformerError                 exit code 1, one line on stderr
    ├── UsageError                 wrong flag or value: exit code 2
    ├── ModelError                 a model folder that cannot be used
    │   ├── ConfigError            config.json: missing, malformed, or maths that is not supported
    │   ├── WeightsError           safetensors: missing file or tensor, wrong shape, truncated
    │   ├── TokenizerError         tokenizer.json: missing or malformed
    │   └── TemplateError          a chat template that cannot be found or rendered
    ├── HubError                   a hub id that cannot be resolved or downloaded
    ├── DeviceError                a device or dtype that this machine does not have
    ├── KernelError (ValueError)   tensors that a kernel does not take: shape, dtype, device, stride
    ├── RequestError               a request that can never run, such as a prompt beyond the context
    ├── OutOfPages                 no KV page is free; the scheduler answers it by preempting
    ├── IdentityError              a key file that is damaged or readable by others
    ├── BlocksMapError             a BlocksMap that cannot be read, planned or used
    └── NetworkError               the network's process, or what a peer did on it
        ├── WireError              bytes that are no message, or a message beyond the wire's limits
        ├── LinkError              a connection that cannot go on: a broken rule, a full queue
        ├── MembershipError        a token, a membership or a list of revocations that is not good
        └── NoRouteError           layers that nobody serves any more

Bugs of ours are ``assert``, not one of these.
"""


class HopformerError(Exception):
    """Root of the tree; its text is one line that says what was found and what to do."""


class UsageError(HopformerError):
    """A flag or an argument that cannot mean anything."""


class ModelError(HopformerError):
    """A model folder that cannot be used."""


class ConfigError(ModelError):
    """config.json or generation_config.json is missing, malformed or asks for maths that is not supported."""


class WeightsError(ModelError):
    """A safetensors file or a tensor in it is missing, truncated or of the wrong shape."""


class TokenizerError(ModelError):
    """tokenizer.json is missing or malformed."""


class TemplateError(ModelError):
    """A chat template is unknown or fails to render."""


class HubError(HopformerError):
    """A hub id cannot be resolved, reached or downloaded."""


class DeviceError(HopformerError):
    """A device or a dtype that this machine does not have."""


class KernelError(HopformerError, ValueError):
    """A kernel was called with tensors of a shape, dtype, device or stride that it does not take."""


class RequestError(HopformerError):
    """A request that can never run."""


class OutOfPages(HopformerError):
    """No KV page is free."""


class IdentityError(HopformerError):
    """A key file is damaged, or cannot be kept private."""


class BlocksMapError(HopformerError):
    """A BlocksMap cannot be read, planned or used."""


class NetworkError(HopformerError):
    """The network cannot do what was asked: an address that is taken, a process that has ended."""


class WireError(NetworkError):
    """Bytes that are no message, or a message beyond the limits of docs/wire-format.md."""


class LinkError(NetworkError):
    """A connection that cannot go on: a rule that the peer broke, or a queue that nobody empties."""


class MembershipError(NetworkError):
    """A token, a membership or a list of revocations that is damaged, forged, expired, revoked or another's."""


class NoRouteError(NetworkError):
    """No peer that can be reached serves some of the layers."""
