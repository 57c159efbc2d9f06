"""What is kept and shown of a run: its journal, its verdict, its pages."""
