"""Plans that callers of a layer make again and again: kept by the values that they were made of."""

import collections

from .plan import Plan

__all__ = ["PlanCache"]


class PlanCache:
    """The newest plans by configuration, documents, group, type, device, layout and options.

    A group is a part of the key itself, not its id(), which a later group may have.
    """

    def __init__(self, limit: int = 16):
        self.limit = limit
        self._plans = collections.OrderedDict()

    def get(self, config, bounds, *, group, dtype, device, partition, exchange, **options) -> Plan:
        """The plan of these values; makes it, which is collective, where there is none."""
        key = config, tuple(bounds), group, dtype, device, partition, exchange, tuple(sorted(options.items()))
        plan = self._plans.get(key)
        if plan is None:
            while self._plans and len(self._plans) >= self.limit:
                self._plans.popitem(last=False)
            plan = self._plans[key] = Plan(config, bounds, group=group, dtype=dtype, device=device,
                                           partition=partition, exchange=exchange, **options)
        return plan

    def clear(self) -> None:
        self._plans.clear()

    def __len__(self):
        return len(self._plans)
