"""Buckets of resolution, length and aspect ratio: batches of clips of one size each, as Open-Sora trains on them.

`config` reads bucket files, `rule` sorts clips into buckets, `order` is the order of the batches, `clips` draws them.
"""

from __future__ import annotations

from kinema.data.buckets.clips import ByBucket
from kinema.data.buckets.config import Buckets
from kinema.data.buckets.order import Order
from kinema.data.buckets.rule import Bucket, ClipSize

__all__ = ["Bucket", "Buckets", "ByBucket", "ClipSize", "Order"]
