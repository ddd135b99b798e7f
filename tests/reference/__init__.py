"""What must not change while the house is rebuilt: recorded once, run again and compared after each step.

Scaffolding: nothing here is collected by pytest, and all of it goes when the rebuilding is over.
"""
