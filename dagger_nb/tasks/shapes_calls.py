"""Shapes that call helpers of lower modules.

The docstring names the helper; 'total_prices of prices and low' is `total_prices(prices, low)`,
in this order.
"""

from __future__ import annotations

from dagger_nb.tasks.markup import parse

CALLS = parse("""
@call_plus final adjust | a:ints b:int -> int | h:ints->int
def $f($a, $b):
    '''Return $h of $a, $op $b.'''
    return $h(«$a|$b:variable») %op $b

@call_pair weigh blend | a:ints b:int -> int | h:ints,int->int
def $f($a, $b):
    '''Return $num times $h of $a and $b.'''
    return %num * $h(«$a, $b|$b, $a:swapped_arguments»)

@call_len size measure | a:ints b:int -> int | h:ints,int->ints
def $f($a, $b):
    '''Return how many numbers $h of $a and $b has.'''
    return len($h(«$a, $b|$b, $a:swapped_arguments»))

@call_each apply change | a:ints b:int -> ints | h:int,int->int
def $f($a, $b):
    '''Return a list of $h of each $a1 and $b.'''
    return [$h(«$a1, $b|$b, $a1:swapped_arguments») for $a1 in $a]

@call_two join combine | a:ints -> int | h:ints->int g:ints->int
def $f($a):
    '''Return $h of $a $op $g of $a.'''
    return $h($a) %op $g($a)

@call_two_pairs balance mix | a:ints b:int -> int | h:ints,int->int g:ints,int->int
def $f($a, $b):
    '''Return $h $op $g, each of $a and $b.'''
    # first $h, then $g
    $acc = $h(«$a, $b|$b, $a:swapped_arguments»)
    return $acc %op $g(«$a, $b|$b, $a:swapped_arguments»)

@call_nest nest stack | a:ints b:int -> int | h:ints->int g:ints,int->ints
def $f($a, $b):
    '''Return $h of $g of $a and $b.'''
    return $h($g(«$a, $b|$b, $a:swapped_arguments»))

@call_chain chain thread | a:int b:int -> int | h:int,int->int g:int,int->int
def $f($a, $b):
    '''Return $h of $b and $acc.'''
    # $acc is $g of $a and $b
    $acc = $g(«$a, $b|$b, $a:swapped_arguments»)
    return $h(«$b, $acc|$acc, $b:swapped_arguments»)

@call_if decide quote | a:int b:int -> int | h:int,int->int
def $f($a, $b):
    '''Return $h of $a and $b.'''
    # but $st if $a is $cmp $lim
    if $a %cmp %lim:
        return %st
    return $h(«$a, $b|$b, $a:swapped_arguments»)

@call_test accept allow | a:ints b:int -> bool | h:ints->int
def $f($a, $b):
    '''Return whether $h of $a is $cmp $b.'''
    return $h(«$a|$b:variable») %cmp $b

@call_sum sum total | a:ints -> int | h:ints->ints
def $f($a):
    '''Return the sum of $h of $a, $op $num.'''
    return sum($h($a)) %op %num

@call_end end pick | a:ints -> int | h:ints->ints
def $f($a):
    '''Return the $end number of $h of $a.'''
    return $h($a)%end

@call_keep sift screen | a:ints b:int c:int -> ints | h:int,int,int->bool
def $f($a, $b, $c):
    '''Return the $a that fit, in order.'''
    $out = []
    for $a1 in $a:
        # a $a1 fits if $h of $a1, $b and $c is $truth
        if %truth$h($a1, «$b, $c|$c, $b:swapped_arguments»):
            $out.«append(|insert(0, :method»$a1)
    return $out

@call_clip limit level | a:ints b:int c:int -> ints | h:int,int,int->int
def $f($a, $b, $c):
    '''Return a list of $h of each $a1, $b and $c.'''
    return [$h($a1, «$b, $c|$c, $b:swapped_arguments») for $a1 in $a]

@call_fits fit suit | a:ints b:int -> int | h:int,int->bool
def $f($a, $b):
    '''Return how many of the $a fit.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        # a $a1 fits if $h of $a1 and $b is $truth
        if %truth$h(«$a1, $b|$b, $a1:swapped_arguments»):
            $acc += «1|2:constant»
    return $acc

@call_text sign frame | a:text b:word -> text | h:text->text
def $f($a, $b):
    '''Return $h of $a, then $sep, then $b.'''
    return $h(«$a|$b:variable») + %sep + $b

@call_texts dress wrap | a:words -> words | h:text->text
def $f($a):
    '''Return a list of $h of each $a1, then $sep.'''
    return [$h($a1) + %sep for $a1 in $a]

@call_words show state | a:words -> text | h:words->text
def $f($a):
    '''Return $h of $a in $case.'''
    return $h($a).%case()

@call_join list print | a:words -> text | h:words->words
def $f($a):
    '''Return $h of $a, joined with $sep.'''
    return %sep.join($h($a))

@call_letters spell scan | a:words b:letter -> int | h:text,letter->int
def $f($a, $b):
    '''Return the sum of $h of each $a1 and $b.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        $acc «+=|-=:operator» $h(«$a1, $b|$b, $a1:swapped_arguments»)
    return $acc

@call_starts count number | a:words b:letter -> int | h:words,letter->words
def $f($a, $b):
    '''Return how many words $h of $a and $b has.'''
    return len($h(«$a, $b|$b, $a:swapped_arguments»))

@call_strip polish tidy | a:text b:letter -> text | h:text,letter->text
def $f($a, $b):
    '''Return $h of $a and $b, in $case.'''
    return $h(«$a, $b|$b, $a:swapped_arguments»).%case()

@call_counts ask query | a:words b:word -> int | h:words->counts
def $f($a, $b):
    '''Return the value of $b in $h of $a, or $st.'''
    return $h($a).get($b, %st)

@call_table rest diff | a:counts c:counts -> int | h:counts->int
def $f($a, $c):
    '''Return $h of $a $op $h of $c.'''
    return $h(«$a|$c:variable») %op $h(«$c|$a:variable»)

@call_length span width | a:words -> int | h:words->text
def $f($a):
    '''Return the length of $h of $a, $op $num.'''
    return len($h($a)) %op %num
""")
