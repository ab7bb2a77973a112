# SPDX-License-Identifier: Apache-2.0
"""What paths do, and which stack is best for them: statistics and decisions, pure and with the
caller's clock.
"""
