"""Evidence for a decision: intervals, stress, the rules of a policy, candidate beside champion."""
