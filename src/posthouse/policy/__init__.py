"""May this client send to this forward-path? Facts and rules in, a value out; no I/O, no clock.

`decide(facts, rules)` answers Grant, Refusal, Deferral or Need. An unknown fact never grants; a branch that cannot happen
refuses. Rules are data, so `proof` can walk every class of client and recipient that they distinguish.
"""
