"""Operations on a cluster: plan, gate, confirm, act, prove. One file a family of operations."""
