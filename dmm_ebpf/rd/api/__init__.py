# SPDX-License-Identifier: Apache-2.0
"""How others talk to a Resource Director: requests, answers and events on its socket."""
